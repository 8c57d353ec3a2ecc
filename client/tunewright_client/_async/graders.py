"""Graders: `client.graders`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._core import endpoints
from ..types import GraderRun
from .http import AsyncResource


class AsyncGraders(AsyncResource):
    """`client.graders`: what scores the answers of a model, alone or in a job with the method reinforcement."""

    async def run(
        self, grader: Mapping[str, Any], model_sample: str, item: Mapping[str, Any] | None = None
    ) -> GraderRun:
        """The reward that a grader gives to an answer.

        - grader: OpenAI's object, such as {"type": "string_check", "name": "exact", "operation": "eq", "input":
          "{{ sample.output_text }}", "reference": "{{ item.answer }}"}
        - model_sample: the answer
        - item: the row, which the grader's texts refer to as `item`

        What goes wrong with this answer is in `metadata.errors`. Raises BadRequestError, whose `param` says what is
        wrong with the grader, and NotFoundError where a model that grades is not served.
        """
        return await self._http.fetch(endpoints.run_grader(grader, model_sample, item))

    async def validate(self, grader: Mapping[str, Any]) -> dict[str, Any]:
        """The grader as the service understood it. Raises BadRequestError, whose `param` says what is wrong."""
        return await self._http.fetch(endpoints.validate_grader(grader))
