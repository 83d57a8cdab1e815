# SPDX-License-Identifier: Apache-2.0
"""Transformers model of Rekindle; needs `pip install rekindle` and trust_remote_code=True.

This file is copied into every exported folder that transformers' own models cannot hold.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from rekindle.exporting.whole import build, restore_buffers


class RekindleConfig(PretrainedConfig):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """How to build the network: `identity` and `adapter` as in Rekindle's model.json."""

    model_type = "rekindle"

    def __init__(
        self, identity: dict[str, Any] | None = None, adapter: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        self.identity, self.adapter = identity, adapter
        super().__init__(**kwargs)


class RekindleModel(PreTrainedModel):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """Vision transformer with adapters; last_hidden_state is [images, tokens, width]: class, registers, patches."""

    config_class = RekindleConfig
    main_input_name = "pixel_values"
    base_model_prefix = ""

    def __init__(self, config: RekindleConfig) -> None:
        super().__init__(config)
        if config.identity is None:
            raise ValueError("RekindleConfig without an identity describes no network; load it from an exported folder")
        self.backbone = build(config.identity, config.adapter)
        self.post_init()  # type: ignore[no-untyped-call, unused-ignore]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does; then compute what its loader leaves empty."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        restore_buffers(model.backbone, model.config.identity, model.config.adapter)
        return loaded

    def _init_weights(self, module: Any) -> None:
        """Leave all as built: every weight comes from the file."""

    def forward(self, pixel_values: Tensor, return_dict: bool | None = None, **kwargs: Any) -> Any:
        """Return all tokens after the final norm, and the class token as pooler_output.

        Args:
            pixel_values: normalised, [images, 3, height, width]; height and width multiples of the patch.
            return_dict: False returns a tuple.
            kwargs: ignored.

        """
        tokens = self.backbone(pixel_values)
        output = BaseModelOutputWithPooling(last_hidden_state=tokens.sequence, pooler_output=tokens.cls)
        return output if return_dict is not False else output.to_tuple()
