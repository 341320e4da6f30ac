import torch

torch.set_num_threads(1)  # the test runner starts a process for each core
