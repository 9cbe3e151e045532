"""Models on disk, training and sampling: the only part of offmodel that touches tensors.

Import from the modules, so that each caller loads no more than it needs: :mod:`folder` (Hugging Face layout), :mod:`train` (TRL),
:mod:`generate` (transformers), :mod:`lora` (PEFT).
"""
