"""The embedded CLIP from nothing: `python -m hf_ci.lab.pretrain`."""
