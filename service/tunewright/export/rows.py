"""The text of an export: the quantizer's calibration text, and the rows on which the quality is measured.

Imports transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from tunewright.evaluate.quality import Row
from tunewright.export.folder import ExportSpec
from tunewright.export.quantizer import pack
from tunewright.jobs.failure import TrainingFailed
from tunewright.rows.dataset import RowEncoder
from tunewright.rows.examples import IGNORED, Example
from tunewright.rows.probes import rows_or_probes
from tunewright.rows.sources import Source

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
        for example in self._examples(self._spec.rows.files, self._spec.rows.count, "validation_file"):
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
        examples = self._examples(calibration.files, calibration.rows, "calibration_file")
        return pack((example.input_ids for example in examples), length=self._longest)

    def _examples(self, files: Sequence[Source], count: int, what: str) -> Iterator[Example]:
        """Those of the first `count` rows."""
        as_chat = self._tokenizer.chat_template is not None
        for _, line, row in islice(rows_or_probes(files, as_chat=as_chat), count):
            for example in self._encoder.examples(row, what, line):
                yield from example.sequences
