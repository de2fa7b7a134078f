"""What tells two tokenizers apart; on the ground floor, since data, checkpoints and metrics all ask for it."""

import hashlib
import json
from typing import Any


def fingerprint(tokenizer: Any) -> str:
    """SHA-256 of what ids mean: entries with their ids, merges, and the ids of BOS, EOS and MASK. Saving keeps it."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", ())]
    specials = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id)
    content = json.dumps([sorted(tokenizer.get_vocab().items()), merges, specials])
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
