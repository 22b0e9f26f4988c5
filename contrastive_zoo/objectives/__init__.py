"""The objectives: one file per method."""

from contrastive_zoo.objectives.alignment_uniformity import alignment_uniformity
from contrastive_zoo.objectives.clip import CLIP
from contrastive_zoo.objectives.dcl import dcl, dclw
from contrastive_zoo.objectives.dhel import dhel
from contrastive_zoo.objectives.emc2 import EMC2
from contrastive_zoo.objectives.hcl import debiased, hcl
from contrastive_zoo.objectives.hscl import HSCL
from contrastive_zoo.objectives.hucl import HUCL
from contrastive_zoo.objectives.infonce import infonce
from contrastive_zoo.objectives.isogclr import ISogCLR
from contrastive_zoo.objectives.kcl import kcl
from contrastive_zoo.objectives.negative_cache import NegativeCache
from contrastive_zoo.objectives.ntxent import ntxent
from contrastive_zoo.objectives.sampled import Sampled
from contrastive_zoo.objectives.scl import SCL
from contrastive_zoo.objectives.siglip import SigLIP
from contrastive_zoo.objectives.sogclr import SogCLR
from contrastive_zoo.objectives.spectral_contrastive import spectral_contrastive
from contrastive_zoo.objectives.supcon import supcon
from contrastive_zoo.objectives.ucl import UCL

__all__ = [
    "CLIP",
    "EMC2",
    "HSCL",
    "HUCL",
    "SCL",
    "UCL",
    "ISogCLR",
    "NegativeCache",
    "Sampled",
    "SigLIP",
    "SogCLR",
    "alignment_uniformity",
    "dcl",
    "dclw",
    "debiased",
    "dhel",
    "hcl",
    "infonce",
    "kcl",
    "ntxent",
    "spectral_contrastive",
    "supcon",
]
