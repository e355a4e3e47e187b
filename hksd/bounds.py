"""Bounds of what a configuration may ask for, shared by every section.

They stand far outside of what has been published, so that nothing plausible is refused; what lies beyond is a slip
(a zero too many, a unit mistaken) that would hang, fill the memory or quietly train nothing.
"""

from __future__ import annotations

# Time
EPOCHS = 100_000  # the longest published schedules have some thousands
BATCH = 2**20  # images of one step; the largest published batches have 2^16
STEPS = 10**9  # optimiser steps: 10^5 epochs of 10^4 steps
ATTACK_STEPS = 10_000  # each costs a forward and a backward pass, in every step of the training
SECONDS_LEAST = 1.0  # of one epoch: below, every epoch would count as hung
SECONDS = 10**7  # of one epoch: four months

# Networks
WIDTH_LEAST = 0.01  # the widest shipped network keeps 20 channels; below, all have one
WIDTH = 64.0  # the narrowest shipped network, of 16 channels, then has 1,024
FEATURES = 2**16  # channels, sizes of vectors, hidden units: one layer between two such has 4 x 10^9 weights
DEPTH = 1000  # stages, blocks, layers that are counted; the deepest published networks have about so many layers
PIXELS = 4096  # height and width of images; an image of floats then takes 200 MB

# Factors
RATE_LEAST = 1e-12  # of learning; float32 rounds smaller steps on weights of usual size away
RATE = 1e12  # rates to 100 are published; such a one ends the run within some steps, with a loss that is not finite
DECAY = 100.0  # of weights; usual is 10^-5 to 1
WEIGHT = 1e8  # of a term beside others: float32 has 24 bits, so that beyond it nothing is left of the others
TEMPERATURE_LEAST = 1e-3  # logits of usual size then differ by thousands: the softmax is one-hot
TEMPERATURE = 1e6  # the softmax is even to the last bit that float32 keeps
FACTOR_LEAST = 1e-6  # of what a gradient or a step may be; below, nothing moves
FACTOR = 1e6  # anything else that multiplies, and norms

# Data
IMAGES = 10**9  # the largest public collections of labelled images have 10^8 to 10^9
DIGITS_PIXELS = 1024  # the images of digits have 8, and all 1,797 lie in memory

# Searches
TRIALS = 10**6  # the largest published searches have some ten thousand
CONCURRENT = 10**5  # trials at once: a cluster of 10^5 cores
CORES = 10_000  # of one trial, and threads: it lives on one machine, and the largest have some thousand
GPUS_LEAST = 1e-4  # of one trial, where it has any; Ray counts no finer
GPUS = 1000.0  # of one trial, likewise
CLUSTER = 10**7  # cores or GPUs of a whole cluster
MEMORY_GB_LEAST = 0.1  # of one trial; a process with PyTorch holds more before it begins
MEMORY_GB = 10**6  # of one machine; the largest have some ten thousand
COST = 1e15  # of a student: parameters, MFLOPs, bytes, milliseconds
HOURS = 10**9  # of training over all devices: 10^5 devices for a year
MONEY = 1e15
LATENCY_RUNS = 10**6  # at a millisecond each, a quarter of an hour
GRID_POINTS = 10_000  # of one continuous range
RANGE_STEPS = 10**6  # of a stepped range; finer ones differ in nothing that training could show
CHOICES = 1000  # values of one choice; each is checked for itself

# Texts and lists
NAME_LENGTH = 255  # bytes; no file system takes a longer name
PATH_LENGTH = 4095  # bytes; Linux takes no longer path
LIST_LENGTH = 1000  # items of one list

# Seeds
LAST_SEED = 2**63 - 1  # the largest that numpy, torch and Optuna all take
