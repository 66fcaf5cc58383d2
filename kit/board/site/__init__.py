"""The board as a static site: pages that need no server, no script of others and no network.

`build` reads a board and writes pages; `view` says what is on them; `text` makes what submitters
wrote harmless; `series` thins logs and telemetry into curves; `recipes` compares recipes.
"""
