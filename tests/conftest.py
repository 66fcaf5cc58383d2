"""For all tests."""

from tqdm import tqdm

# The thread that watches over bars can fail beside threads that draw them (tqdm issue 481), in
# whichever test runs then.
tqdm.monitor_interval = 0
