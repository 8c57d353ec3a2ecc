"""The store: the objects for all tables, on one database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from tunewright.store.alias_judgements import AliasJudgementStore
from tunewright.store.aliases import AliasStore
from tunewright.store.audit import AuditStore
from tunewright.store.bases import BaseStore
from tunewright.store.bucket_owners import BucketOwnerStore
from tunewright.store.checks import CheckStore
from tunewright.store.database import Database
from tunewright.store.deployments import DeploymentStore
from tunewright.store.ends import EndStore
from tunewright.store.engines import EngineStore
from tunewright.store.evaluated import EvaluatedStore
from tunewright.store.figures import FigureStore
from tunewright.store.files import FileStore
from tunewright.store.holdings import HoldingStore
from tunewright.store.jobs import JobStore
from tunewright.store.keys import KeyStore
from tunewright.store.latest import Latest
from tunewright.store.listings import Listings
from tunewright.store.models import ModelStore
from tunewright.store.names import NameStore
from tunewright.store.policies import PolicyStore
from tunewright.store.projects import ProjectStore
from tunewright.store.ratings import RatingStore
from tunewright.store.shadow_answers import ShadowAnswerStore
from tunewright.store.uploads import UploadStore
from tunewright.store.usage import UsageStore
from tunewright.store.webhooks import WebhookStore


@dataclass(frozen=True)
class Store:
    """All parts of the store."""

    database: Database
    files: FileStore
    jobs: JobStore
    models: ModelStore
    engines: EngineStore
    listings: Listings
    aliases: AliasStore
    shadow_answers: ShadowAnswerStore
    checks: CheckStore
    deployments: DeploymentStore
    names: NameStore
    ratings: RatingStore
    figures: FigureStore
    webhooks: WebhookStore
    latest: Latest
    """For one thread."""
    ends: EndStore
    evaluated: EvaluatedStore
    alias_judgements: AliasJudgementStore
    uploads: UploadStore
    projects: ProjectStore
    keys: KeyStore
    usage: UsageStore
    holdings: HoldingStore
    policies: PolicyStore
    bases: BaseStore
    audit: AuditStore
    bucket_owners: BucketOwnerStore

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the database without upgrading it: the supervisor does that before it starts its processes."""
        return cls.on(Database(url))

    @classmethod
    def on(cls, database: Database) -> Self:
        """All parts on one database, which may be that of one project."""
        return cls(
            database,
            FileStore(database),
            JobStore(database),
            ModelStore(database),
            EngineStore(database),
            Listings(database),
            AliasStore(database),
            ShadowAnswerStore(database),
            CheckStore(database),
            DeploymentStore(database),
            NameStore(database),
            RatingStore(database),
            FigureStore(database),
            WebhookStore(database),
            Latest(database),
            EndStore(database),
            EvaluatedStore(database),
            AliasJudgementStore(database),
            UploadStore(database),
            ProjectStore(database),
            KeyStore(database),
            UsageStore(database),
            HoldingStore(database),
            PolicyStore(database),
            BaseStore(database),
            AuditStore(database),
            BucketOwnerStore(database),
        )

    def of(self, project: str) -> Self:
        """The store as one project sees it: no row of another one is found, counted or changed."""
        return self.on(self.database.of(project))

    def close(self) -> None:
        self.latest.close()
        self.database.close()
