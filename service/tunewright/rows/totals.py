"""What is counted while a file is tokenized. It lies beside the tokens as JSON, so that it is read without them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from tunewright.plan.data_shape import DataShape


class Totals(BaseModel):
    """Counts of a tokenized file. Tokens are those after the cut at `max_length`, unless said otherwise.

    An example is one sequence of tokens; of preference rows it is a pair of them, each with the prompt.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    source: str
    """sha256 of the file."""
    max_length: int
    rows: int
    """Rows of the file. A chat row is several examples where the template rewrites what was said before."""
    examples: int
    """Examples that are trained on."""
    per_example: int = 1
    """Sequences of an example."""
    good: int | None = None
    """Of labelled rows: examples whose answer is good."""
    tokens: int
    """Tokens of these examples."""
    learnt: int
    """Those of them that have a loss."""
    truncated: int
    """Examples cut at `max_length`."""
    dropped: int
    """Examples with nothing left to learn after the cut; they are not among `examples`."""
    identical: int = 0
    """Those of them whose two answers are the same, or are after the cut."""
    lost: int
    """Tokens that would have a loss but for the cut."""
    longest: int
    """Tokens of the longest sequence before the cut."""
    lengths: dict[int, int]
    """Number of sequences of each length in tokens."""
    whole_lengths: dict[int, int] = {}
    """Number of sequences of each length before the cut, also of those that are left out."""
    too_long: dict[int, int] = {}
    """The first lines with an example that was cut, and the tokens of the longest one there."""

    def shape(self) -> DataShape:
        """Of the examples that are trained on, after the cut."""
        return DataShape(self.rows, self.examples, self.tokens, self.learnt, self.lengths)

    def left_out(self) -> dict[int, int]:
        """Number of sequences of each length after the cut, of the examples that are not trained on: their tokens are
        known together, and shared out."""
        number = self.dropped * self.per_example
        if not number:
            return {}
        whole = sum(min(length, self.max_length) * count for length, count in self.whole_lengths.items())
        each, more = divmod(max(0, whole - self.tokens), number)
        return {each: number - more} | ({each + 1: more} if more else {})

    def describe(self) -> str:
        text = f"{self.rows} {'pairs' if self.per_example > 1 else 'rows'}, {self.tokens} tokens"
        if self.examples + self.dropped > self.rows:
            text += f" in {self.examples} examples (the chat template rewrites earlier turns)"
        if self.good is not None:
            text += f", {self.good} good and {self.examples - self.good} bad answers"
        if self.truncated:
            text += f", {self.truncated} truncated to {self.max_length} tokens"
        if cut := self.dropped - self.identical:
            text += f", {cut} left out (nothing to learn within the maximum length)"
        if self.identical:
            text += (
                f", {self.identical} left out (both answers are the same tokens within the maximum length)"
            )
        return text
