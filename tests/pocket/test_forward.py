import pytest
import torch

from fluxsmith.pocket.captions import encode
from fluxsmith.pocket.checkpoints import load_checkpoint
from fluxsmith.pocket.digits import GRID
from fluxsmith.pocket.forward import Conditioning, image_ids, velocity
from fluxsmith.pocket.streams import stream


def test_image_ids_count_rows_then_columns() -> None:
    assert image_ids((2, 3)).tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]


@pytest.mark.parametrize("name", ["schnell", "dev"])
def test_what_stands_in_a_pad_token_does_not_matter(name: str) -> None:
    transformer = load_checkpoint(name)
    latents = torch.randn(2, 16, 4, generator=stream(0, "latents"))
    times = torch.tensor([0.3, 0.9])
    guidance = torch.full((2,), 2.0) if transformer.config.guidance_embeds else None
    plain = encode(["seven", "handwritten inverted two"])
    noisy = plain.prompt_embeds + 10 * torch.randn(plain.prompt_embeds.shape, generator=stream(0, "pads"))
    padded = plain._replace(prompt_embeds=torch.where(plain.mask[:, :, None], plain.prompt_embeds, noisy))

    def predict(conditioning: Conditioning) -> torch.Tensor:
        with torch.no_grad():
            return velocity(transformer, latents, times, conditioning, GRID, guidance)

    assert torch.equal(predict(plain), predict(padded))
    unmasked = torch.ones_like(plain.mask)
    assert (predict(plain._replace(mask=unmasked)) - predict(padded._replace(mask=unmasked))).abs().max() > 0.01
