"""The text of an export: the quantizer's calibration text, and the rows on which the quality is measured.

Imports transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from tunewright.evaluate.quality import Row
from tunewright.export.folder import ExportSpec
from tunewright.export.quantizer import pack
from tunewright.jobs.failure import TrainingFailed
from tunewright.rows.dataset import RowEncoder
from tunewright.rows.examples import IGNORED, Example
from tunewright.rows.probes import rows_or_probes
from tunewright.rows.reading import Reading

_LONGEST_ROW = 512
"""Tokens of a measured row; longer ones are cut."""


class ExportText:
    """Rows, encoded with the tokenizer and the chat template of the product."""

    def __init__(self, spec: ExportSpec) -> None:
        self._spec = spec
        options = {"trust_remote_code": spec.trust_remote_code, "local_files_only": True}
        self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(spec.base_path, **options)
        if spec.chat_template is not None:
            self._tokenizer.chat_template = spec.chat_template
        self._encoder = RowEncoder(self._tokenizer)
        config = AutoConfig.from_pretrained(spec.base_path, **options).get_text_config()
        self._longest = min(_LONGEST_ROW, getattr(config, "max_position_embeddings", None) or _LONGEST_ROW)

    def measured(self) -> list[Row]:
        """The rows on which the quality is measured; the tokens that training would learn count.

        Raises TrainingFailed where a row cannot be encoded, or no token counts.
        """
        rows = []
        for example in self._examples(
            self._spec.rows.file, self._spec.rows.reading, self._spec.rows.count, "validation_file"
        ):
            counted = [label != IGNORED for label in example.labels[: self._longest]]
            if any(counted[1:]):
                rows.append(Row(tokens=example.input_ids[: self._longest], counted=counted))
        if not rows:
            raise TrainingFailed(
                "invalid_validation_file",
                f"in none of the rows an answer begins within {self._longest} tokens: there is nothing to measure",
            )
        return rows

    def calibration(self) -> list[list[int]]:
        """Blocks of tokens for the quantizer. Raises TrainingFailed where a row cannot be encoded."""
        calibration = self._spec.calibration
        assert calibration is not None, "only what is quantized is calibrated"
        examples = self._examples(calibration.file, calibration.reading, calibration.rows, "calibration_file")
        return pack((example.input_ids for example in examples), length=self._longest)

    def _examples(self, file: str | None, reading: Reading, count: int, what: str) -> Iterator[Example]:
        """Those of the first `count` rows."""
        for line, row in islice(self._rows(file, reading), count):
            for example in self._encoder.examples(row, what, line):
                yield from example.sequences

    def _rows(self, file: str | None, reading: Reading) -> Iterable[tuple[int, dict[str, Any]]]:
        as_chat = self._tokenizer.chat_template is not None
        return rows_or_probes(Path(file) if file is not None else None, as_chat=as_chat, reading=reading)
