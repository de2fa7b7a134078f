"""Convert a checkpoint between the formats of MDLM, SDTT, Di4C and this project, without loss."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from di4c_lm.checkpoints import di4c, lightning, mdlm, sdtt
from di4c_lm.checkpoints.load import read_checkpoint

WRITERS = {"di4c": di4c.write, "mdlm": mdlm.write, "sdtt": sdtt.write}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="convert_checkpoint.py", description=__doc__)
    parser.add_argument("source", metavar="SRC", help="a folder, a .ckpt file, or a hub name (owner/model)")
    parser.add_argument(
        "target",
        metavar="DST",
        type=Path,
        help="the folder to write; with --to mdlm|sdtt a name in .ckpt is a Lightning file",
    )
    parser.add_argument("--to", required=True, choices=sorted(WRITERS), help="the format to write")
    parser.add_argument(
        "--weights", choices=["ema", "raw"], default="ema", help="which, where SRC has both (default: ema)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub name")
    parser.add_argument("--num-heads", type=int, help="attention heads, where SRC does not say")
    parser.add_argument("--length", type=int, help="positions (tokens a sequence), where SRC does not say")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert as the command line says. Returns 0, or 2 for bad input, and then leaves DST as it was."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = _parser().parse_args(arguments)
    try:
        weights = read_checkpoint(
            options.source,
            revision=options.revision,
            weights=options.weights,
            num_heads=options.num_heads,
            length=options.length,
        )
        as_lightning = options.target.suffix == ".ckpt" and options.to != "di4c"
        write = lightning.write if as_lightning else WRITERS[options.to]
        write(options.target, weights)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(tensor.numel() for tensor in weights.tensors.values())
    print(f"{options.target}: {len(weights.tensors)} tensors, {size:,} values, in the format {options.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
