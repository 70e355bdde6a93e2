"""The running regions, alive: what `pghc watch` shows as a page and ``lab.watch()`` as a widget.

``observer`` reads what the servers know, ``evidence`` says what follows from it, ``stream`` keeps the last minutes of
both; ``control`` does what a button says, ``saved`` keeps a moment in a history and plays it again. ``static/live.js``
draws it all, for the page and for the widget.
"""
