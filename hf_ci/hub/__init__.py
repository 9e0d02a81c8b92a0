"""The only room that knows the Hub: a target or a base model in, files on disk at a resolved commit out."""

from hf_ci.hub.base import BaseModel, check_merged, fetch_base, named_base
from hf_ci.hub.target import Fetched, Target, fetch_target, fetch_text, folders_of, parse_target, without_lone_models

__all__ = [
    "BaseModel",
    "Fetched",
    "Target",
    "check_merged",
    "fetch_base",
    "fetch_target",
    "fetch_text",
    "folders_of",
    "named_base",
    "parse_target",
    "without_lone_models",
]
