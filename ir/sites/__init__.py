"""Sites: what the parts of a network are, found by dataflow and by evaluation, never by names.

found = find_sites(program)
found.attention, found.masks, found.rotary        # one entry per attention, in order
found.roles.of(value)                             # what each dim is for
"""

from __future__ import annotations

from opgraft.ir.sites.attention_site import AttentionSite
from opgraft.ir.sites.find_sites import Sites, find_sites
from opgraft.ir.sites.masks import Mask, MaskClass

__all__ = ["AttentionSite", "Mask", "MaskClass", "Sites", "find_sites"]
