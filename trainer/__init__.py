"""The training core: one run, on one machine or many."""

import logging

# It speaks as soon as peft imports it, and then once for every int8 product on a CPU.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
