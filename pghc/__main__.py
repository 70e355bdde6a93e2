from pghc.cli import main

main()
