"""A local page over runs, live while they train: `sparrow watch`.

follow.py   a log that grows, is cut back and is cut off while it is read
track.py    its numbers as columns of bounded length, with every extreme kept
run.py      one run folder, followed, and what state it is in
watcher.py  all runs below some folders, and the answers that the page asks for
compare.py  what differs between two recipes
server.py   the page and the answers over HTTP, to this machine alone
page/       the page: HTML, CSS and JavaScript as a browser takes them
"""
