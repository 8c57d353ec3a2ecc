"""Keys and passwords, found by detect-secrets."""

from __future__ import annotations

import re
from functools import cached_property
from importlib import import_module
from typing import Any, Literal

from tunewright.rows.cleaning.step import Options, Outcome, Record, Step, acted
from tunewright.rows.cleaning.texts import changed_everywhere, every_text

_LONGEST = 4_096
"""Characters of a line that are looked at at a time: the patterns are made for lines of code."""


_DETECTORS = {
    "artifactory": "ArtifactoryDetector",
    "aws": "AWSKeyDetector",
    "azure_storage_key": "AzureStorageKeyDetector",
    "basic_auth": "BasicAuthDetector",
    "discord": "DiscordBotTokenDetector",
    "github_token": "GitHubTokenDetector",
    "gitlab_token": "GitLabTokenDetector",
    "jwt": "JwtTokenDetector",
    "mailchimp": "MailchimpDetector",
    "npm": "NpmDetector",
    "openai": "OpenAIDetector",
    "pypi_token": "PypiTokenDetector",
    "sendgrid": "SendGridDetector",
    "slack": "SlackDetector",
    "square_oauth": "SquareOAuthDetector",
    "stripe": "StripeDetector",
    "telegram_token": "TelegramBotTokenDetector",
    "twilio": "TwilioKeyDetector",
}
"""The modules of detect-secrets that know a secret by its form, and their classes. The guesses by entropy and by names
of variables are left out: in prose and code of training data they are mostly wrong."""
_SHORT = 8
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)"
)


class SecretsOptions(Options):
    """`mask` writes `[secret]` in their place."""

    type: Literal["secrets"] = "secrets"
    action: Literal["flag", "mask", "remove"] = "flag"


class Secrets(Step):
    name = "secrets"

    def __init__(self, options: SecretsOptions) -> None:
        self._action = options.action

    def apply(self, record: Record) -> Outcome:
        found = {kind for text in every_text(record.row) for kind, _ in self.found(text)}
        return acted(
            self._action, record, lambda: changed_everywhere(record.row, self._masked), tuple(sorted(found))
        )

    @cached_property
    def _detectors(self) -> list[Any]:
        return [
            getattr(import_module(f"detect_secrets.plugins.{module}"), name)()
            for module, name in _DETECTORS.items()
        ]

    def found(self, text: str) -> list[tuple[str, str]]:
        """(kind, secret) of each in a text. Of a private key detect-secrets knows the first line only."""
        found = [("Private Key", key[0]) for key in _PRIVATE_KEY.finditer(text)]
        return found + [
            (str(detector.secret_type), str(secret))
            for line in text.splitlines()
            for start in range(0, len(line), _LONGEST)
            for detector in self._detectors
            for secret in detector.analyze_string(line[start : start + _LONGEST])
            if secret
        ]

    def _masked(self, text: str) -> str:
        for _, secret in sorted(self.found(text), key=lambda found: len(found[1]), reverse=True):
            if len(secret) < _SHORT:  # a password in an address; elsewhere the same letters may be a word
                text = text.replace(f":{secret}@", ":[secret]@")
            else:
                text = text.replace(secret, "[secret]")
        return text
