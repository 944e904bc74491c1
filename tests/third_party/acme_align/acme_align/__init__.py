"""A plugin of a third party: one objective."""

from alignkit import hookimpl


@hookimpl
def alignkit_objectives():
    return {"AcmeHinge": "acme_align.objective:AcmeHinge"}
