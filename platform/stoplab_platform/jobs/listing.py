"""Which jobs a list shows, at a cost that does not grow with the jobs there are.

Each filter has an index in which its jobs lie by age, so a page is read from the end of it,
whatever a database believes of its tables. Several states or kinds are read each from its own
place; what else is asked is looked at job by job. Only names with one beginning lie in no order of
age: a few are sorted, many are looked for among the newest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Select, SQLColumnExpression, and_, false, func, or_, select
from sqlalchemy.orm import Session, aliased

from stoplab_platform.jobs.models import Job, JobQuery
from stoplab_platform.jobs.rows import job_value
from stoplab_platform.jobs.tables import UNFINISHED, JobRow, LabelRow

FEW = 10_000
"""So many jobs of a name are sorted."""

AT_ONCE = 500
"""Rows that are asked for by name in one query."""

LAST = "\U0010ffff"
"""The character after every other."""


def page(session: Session, query: JobQuery, limit: int) -> list[JobRow]:
    """The first ``limit`` jobs that fit, newest first."""
    ids: set[str] = set()
    for stream in _streams(session, query):
        ids.update(session.scalars(stream.limit(limit)))
    newest = sorted(ids, reverse=True)[:limit]
    rows = session.scalars(select(JobRow).where(JobRow.id.in_(newest)))
    return sorted(rows, key=lambda row: row.id, reverse=True)


def unfinished(session: Session, known: Mapping[str, Job]) -> list[Job]:
    """Unfinished jobs, oldest first; those of ``known`` whose version stands are not read again."""
    versions = session.execute(
        select(JobRow.id, JobRow.version).where(UNFINISHED).order_by(JobRow.id)
    ).all()
    found = {
        one: known[one]
        for one, version in versions
        if one in known and known[one].version == version
    }
    lacking = [one for one, _ in versions if one not in found]
    for start in range(0, len(lacking), AT_ONCE):
        some = JobRow.id.in_(lacking[start : start + AT_ONCE])
        rows = session.scalars(select(JobRow).where(some, UNFINISHED))
        found.update((row.id, job_value(row)) for row in rows)
    return [found[one] for one, _ in versions if one in found]


def _streams(session: Session, query: JobQuery) -> Iterator[Select[str]]:
    """Ids by age, each from one place of one index; together they are all that fit."""
    if query.labels:
        yield _by_label(query)
    elif query.prefix:
        rest = replace(query, prefix=None)
        yield _by_age(rest, _begins(JobRow.id, query.prefix))
        yield _by_name(session, rest, query.prefix)
    elif query.states:
        for state in dict.fromkeys(query.states):
            yield _by_age(replace(query, states=(state,)))
    elif query.kinds:
        for kind in dict.fromkeys(query.kinds):
            yield _by_age(replace(query, kinds=(kind,)))
    else:
        yield _by_age(query)


def _by_age(query: JobQuery, *more: ColumnElement[bool]) -> Select[str]:
    return select(JobRow.id).where(*_conditions(query), *more).order_by(JobRow.id.desc())


def _by_label(query: JobQuery) -> Select[str]:
    """From the place of the first label."""
    (key, value), *others = query.labels
    first = aliased(LabelRow)
    found = (
        select(first.job_id)
        .join(JobRow, JobRow.id == first.job_id)
        .where(first.key == key, first.value == value)
        .where(*_conditions(replace(query, labels=tuple(others))))
        .order_by(first.job_id.desc())
    )
    if query.project is not None:
        found = found.where(first.project == query.project)
    return found.where(first.job_id < query.cursor) if query.cursor else found


def _by_name(session: Session, query: JobQuery, prefix: str) -> Select[str]:
    begins = _begins(JobRow.name_key, prefix)
    scope = JobQuery(project=query.project)
    named = select(JobRow.id).where(*_conditions(scope), begins).limit(FEW + 1).subquery()
    count = session.scalars(select(func.count()).select_from(named)).one()
    if count <= FEW and (query.states or query.kinds):
        return _by_age(query, JobRow.id.in_(select(named.c.id)))
    if count <= FEW:  # what is asked stands in the index
        found = select(named.c.id).order_by(named.c.id.desc())
        return found.where(named.c.id < query.cursor) if query.cursor else found
    # Of so many, the newest hold some. As an expression no database reads them by name: it would
    # have to sort them all.
    return _by_age(query, _begins(JobRow.name_key + "", prefix))


def _conditions(query: JobQuery) -> list[ColumnElement[bool]]:
    found = [JobRow.hidden == false()]
    if query.project is not None:
        found.append(JobRow.project == query.project)
    if query.states:
        found.append(_one_of(JobRow.state, query.states))
    if query.kinds:
        found.append(_one_of(JobRow.kind, query.kinds))
    for key, value in query.labels:
        found.append(JobRow.labels.any(and_(LabelRow.key == key, LabelRow.value == value)))
    if query.prefix:
        names = _begins(JobRow.name_key, query.prefix)
        found.append(or_(names, _begins(JobRow.id, query.prefix)))
    if query.cursor:
        found.append(JobRow.id < query.cursor)
    return found


def _one_of(column: SQLColumnExpression[str], values: tuple[Any, ...]) -> ColumnElement[bool]:
    return column == values[0] if len(values) == 1 else column.in_(values)


def _begins(column: SQLColumnExpression[str], prefix: str) -> ColumnElement[bool]:
    start = prefix.lower()
    return and_(column >= start, column < start + LAST)
