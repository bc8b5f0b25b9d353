"""What the language model sees: the image tower of CLIP, and the linear layer that turns patches into words.

Shape legend: B images, P patches, C width of the language model.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from saccade.models.gsva.config import CLIPConfig


class ImageTower(nn.Module):
    """CLIP's image tower.

    Args:
        config: Sizes.
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        whole = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.width,
                intermediate_size=config.mlp_width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                hidden_act="quick_gelu",
                layer_norm_eps=1e-5,
            )
        )
        # Some versions of transformers keep the tower one level deeper.
        self.tower = getattr(whole, "vision_model", whole)

    def forward(self, images_B3ss: Tensor) -> Tensor:
        """Patches before the last block, ``[B, P, width]``; the class token is left out."""
        states = self.tower.pre_layrnorm(self.tower.embeddings(images_B3ss))
        for layer in self.tower.encoder.layers[:-1]:
            states = layer(states, None)
        return states[:, 1:]

    def used_parameters(self) -> Iterator[nn.Parameter]:
        """Those that the patches depend on: the last block and the last norm are kept, as released, but not run."""
        unused = {*self.tower.encoder.layers[-1].parameters(), *self.tower.post_layernorm.parameters()}
        return (parameter for parameter in self.parameters() if parameter not in unused)
