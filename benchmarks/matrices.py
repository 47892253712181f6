"""Three fp32 files of one square matrix each, a recipe that merges them, and the memory that its plan counts.

python -m benchmarks.matrices SIZE FORMULA FOLDER

Writes base, a and b (fine-tunes of base) where they are missing, and FOLDER/recipe.yaml; prints the planned peak in bytes.
"""

import argparse
from pathlib import Path

__all__ = ["write_matrices"]


def write_matrices(size: int, folder: Path) -> dict[str, Path]:
    """The files by the names that formulas use."""
    import torch
    from safetensors.torch import save_file

    files = {name: folder / f"{size}-{name}.safetensors" for name in ("base", "a", "b")}
    shared = torch.randn(size, size, generator=torch.Generator().manual_seed(0)) * 0.02
    for seed, file in enumerate(files.values()):
        if not file.exists():
            change = torch.randn(size, size, generator=torch.Generator().manual_seed(seed)) * (0.001 if seed else 0)
            save_file({"matrix.weight": shared + change}, file)
    return files


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", type=int)
    parser.add_argument("formula")
    parser.add_argument("folder", type=Path)
    a = parser.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    files = write_matrices(a.size, a.folder)

    import fluxsmith as fs
    from fluxsmith.engine.memory import peak_bytes
    from fluxsmith.recipes.loading import load_recipe

    models = "".join(f"  {name}: {file}\n" for name, file in files.items())
    recipe = a.folder / "recipe.yaml"
    recipe.write_text(f'fluxsmith: 1\nstructural: true\nmodels:\n{models}merge: "{a.formula}"\n')
    needs = fs.plan(load_recipe(recipe)).needs
    print(peak_bytes(needs.tile_bytes, needs.whole_bytes, 1))


if __name__ == "__main__":
    _main()
