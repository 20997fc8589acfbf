"""The way to a cache's directory: which symlinks and which closed directories are passed."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from jobcache.cache import reasons
from support.claims import claim, enter, root_only
from support.home import acting_as_root
from support.site_dir import ALICE


@root_only
@pytest.mark.parametrize("owner", ["root", ALICE])
def test_only_symlinks_of_root_are_followed(scratch: Path, owner: str) -> None:
    """Sites put symlinks into paths. A user's symlink could lead a deletion elsewhere."""
    (scratch / "real").mkdir()
    with acting_as_root():
        (scratch / "link").symlink_to("real")
        os.lchown(scratch / "link", pwd.getpwnam(owner).pw_uid, -1)
    asked = claim(scratch / "link" / "below")
    if owner == "root":
        assert enter(asked) == "made"
        assert (scratch / "real/below/hf-4242").exists()
    else:
        with pytest.raises(OSError) as caught:
            enter(asked)
        assert reasons.reason_of(caught.value) == "not_directory"
        assert caught.value.filename == str(scratch / "link") and " to real; " in caught.value.strerror
        assert not (scratch / "real/below/hf-4242").exists()


def test_unreadable_directories_on_the_way_are_passed(scratch: Path) -> None:
    """Search permission is enough."""
    (scratch / "closed/open").mkdir(parents=True)
    (scratch / "closed").chmod(0o100)
    assert enter(claim(scratch / "closed" / "open")) == "made"
    (scratch / "closed").chmod(0o700)
