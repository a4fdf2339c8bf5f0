"""How often this process ran out of memory and went on with a smaller batch: `count`, which only rises.

Loads no torch: whoever watches it need not have run anything.
"""

count = 0
