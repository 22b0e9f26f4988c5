"""What is minimised: one file per method."""

from contrastive_zoo.objectives.dcl import dcl
from contrastive_zoo.objectives.dhel import dhel
from contrastive_zoo.objectives.emc2 import EMC2
from contrastive_zoo.objectives.hcl import debiased, hcl
from contrastive_zoo.objectives.infonce import infonce
from contrastive_zoo.objectives.kcl import kcl
from contrastive_zoo.objectives.negative_cache import NegativeCache
from contrastive_zoo.objectives.ntxent import ntxent
from contrastive_zoo.objectives.sampled import Sampled
from contrastive_zoo.objectives.sogclr import SogCLR

__all__ = ["EMC2", "NegativeCache", "Sampled", "SogCLR", "dcl", "debiased", "dhel", "hcl", "infonce", "kcl", "ntxent"]
