"""The names of adapters: keys of a file to modules and back, one file per dialect.

base.py            what a dialect is
writing.py         what it needs to be written, beside what it needs to be read
overview.py        all of them at a glance
kohya.py           kohya's sd-scripts and LyCORIS
split_qkv.py       kohya's files whose q, k and v were trained apart
kohya_oft.py       sd-scripts' OFT
onetrainer.py      OneTrainer's old files
onetrainer_bfl.py  OneTrainer's files with BFL names in parts
original.py        original names without a prefix
comfy.py           ComfyUI, ai-toolkit, diffusion-pipe
xlabs.py           XLabs' x-flux
bfl_control.py     Black Forest Labs' control adapters
diffusers.py       diffusers' pipelines and models
ai_toolkit.py      ai-toolkit for FLUX.1
peft.py            PEFT's folders; peft_rules.py: what a PEFT config says about a module
lycoris.py         the lycoris package, SimpleTuner
"""

from fluxsmith.adapters.dialects.ai_toolkit import AI_TOOLKIT
from fluxsmith.adapters.dialects.base import MAIN, Dialect, Draft, Key
from fluxsmith.adapters.dialects.bfl_control import BFL_CONTROL
from fluxsmith.adapters.dialects.comfy import COMFY
from fluxsmith.adapters.dialects.diffusers import DIFFUSERS_MODEL, DIFFUSERS_PIPELINE
from fluxsmith.adapters.dialects.kohya import KOHYA
from fluxsmith.adapters.dialects.kohya_oft import KOHYA_OFT
from fluxsmith.adapters.dialects.lycoris import LYCORIS
from fluxsmith.adapters.dialects.onetrainer import ONETRAINER
from fluxsmith.adapters.dialects.onetrainer_bfl import ONETRAINER_BFL
from fluxsmith.adapters.dialects.original import ORIGINAL
from fluxsmith.adapters.dialects.peft import PEFT
from fluxsmith.adapters.dialects.xlabs import XLABS

__all__ = ["DIALECTS", "MAIN", "Dialect", "Draft", "Key"]

#: Every dialect by name; a new one is one file and one entry here. Where two read a file alike, the first is named.
DIALECTS: dict[str, Dialect] = {
    d.name: d for d in (
        KOHYA, KOHYA_OFT, ONETRAINER, ONETRAINER_BFL, COMFY, ORIGINAL, XLABS, BFL_CONTROL,
        DIFFUSERS_PIPELINE, DIFFUSERS_MODEL, AI_TOOLKIT, PEFT, LYCORIS,
    )
}  # fmt: skip
