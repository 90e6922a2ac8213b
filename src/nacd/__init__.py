"""NACD: distil an instruction-tuning set to a few per cent of its rows, as text (arXiv 2504.09818).

import nacd

result = nacd.distill(nacd.DistillConfig(
    model=nacd.ModelConfig(model="smollm2"),
    data=nacd.DataConfig(data="mine.jsonl"),
    budget="5%",
    out="runs/mine",
))
print(result.verdict, result.dataset)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
