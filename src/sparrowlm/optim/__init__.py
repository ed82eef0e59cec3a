"""Which parameter is stepped how, by what rule, and at what rate."""

from sparrowlm.optim.adamw import AdamW
from sparrowlm.optim.groups import Optimizers, build_optimizers
from sparrowlm.optim.muon import Muon
from sparrowlm.optim.rule import Group
from sparrowlm.optim.schedule import Schedule

__all__ = ["AdamW", "Group", "Muon", "Optimizers", "Schedule", "build_optimizers"]
