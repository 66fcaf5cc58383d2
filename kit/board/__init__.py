"""The board: submissions, the maintainers' decisions about them, and the table derived from both.

Everything is a file in a folder, whether the folder is this repository's `submissions/`, a checkout
of a dataset on the Hub, or any other: see `kit.board.layout`.
"""
