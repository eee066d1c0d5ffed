"""Names of the aliases of a registered model, and of the tags that versions carry."""

from __future__ import annotations

from typing import Final

CHAMPION: Final = "champion"
"""What serves."""
CHALLENGER: Final = "challenger"
"""The newest version."""
PREVIOUS: Final = "previous"
"""The champion before, for a rollback."""
ANCHOR: Final = "anchor"
"""The best champion so far: what all nights together are measured against."""
BUNDLE_TAG: Final = "bundle_digest"
"""Digest of what the bundle was made from: a night that makes the same again finds its version."""
CONTENT_TAG: Final = "bundle_content"
"""Digest of every byte of the bundle: what is loaded as this version has it."""
CLEANED_TAG: Final = "cleaned_at"
"""When the files of a version were deleted; the version itself stays, so that its history can be told."""
