"""Whether an optimizer has the right parameters of a network: `ngopt.audit`."""

from ngopt.audit.report import Audit, AuditedParameter, audit

__all__ = ["Audit", "AuditedParameter", "audit"]
