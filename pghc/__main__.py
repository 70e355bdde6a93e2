from pghc.cli.commands import main

main()
