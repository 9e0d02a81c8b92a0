"""Prompt-tuned CLIPs that PEFT did not save: checkpoints of the training code (Dassl), and tensors by themselves.

unpickle    a file's bytes -> plain values, and nothing is run
layout      plain values -> what the training code had in its hands (`Checkpoint`)
names       the class names that a checkpoint holds as rows of the base model's token table
whole       the encoders that a checkpoint brings along, held against the base model's
read        a checkpoint and its base model -> `Adapter`, the same value that PEFT adapters are read as
"""
