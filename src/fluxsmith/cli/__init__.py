"""The command line: one file per command, without logic of their own; they parse, call and show.

main.py      the lazy group: a command's file is imported when it is used
options.py   flags that commands share
console.py   what goes to stdout and stderr, for people and as JSON
progress.py  watching a run: bars, lines or events, and Ctrl-C
"""
