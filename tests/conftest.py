import signal

import torch

torch.set_num_threads(1)  # the test runner starts a process for each core

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background; what tests start inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)
