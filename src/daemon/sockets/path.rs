//! The path of a UNIX socket: bound, and given the owner and the mode that the file wants.

use std::os::fd::AsFd;
use std::path::Path;

use super::error::{Problem, Step};
use super::plan::{Owner, SocketPlan};
use crate::sys::folder::{MadeFolders, Place};
use crate::sys::occupant::{self, Occupant, folder_of, occupant_in};
use crate::sys::socket_file::{Permissions, SocketFile};

/// The mode of a path where the file says nothing (systemd.socket(5), `SocketMode=`).
const DEFAULT_MODE: u32 = 0o666;
/// The mode of the folders made above a path where the file says nothing (`DirectoryMode=`).
const DEFAULT_DIRECTORY_MODE: u32 = 0o755;

/// Binds the path itself, never a temporary name that is then renamed: getsockname(2) must tell the final one.
pub(super) fn bind_path(
    fd: &impl AsFd,
    path: &Path,
    plan: &SocketPlan,
    place: Option<&Place>,
) -> Result<(MadeFolders, SocketFile, Permissions), Problem> {
    let file_options = &plan.spec.options;
    let directory_mode = file_options.directory_mode.unwrap_or(DEFAULT_DIRECTORY_MODE);
    let (folders, folder) =
        MadeFolders::open(&folder_of(path), directory_mode, place).map_err(Step::MakingFolders.failed())?;
    match occupant_in(&folder, path).map_err(Step::Probing.failed())? {
        Occupant::Nobody => {}
        Occupant::Stale => occupant::remove_stale(&folder, path).map_err(Step::RemovingStale.failed())?,
        Occupant::Live => return Err(Problem::LivePath),
        Occupant::NotASocket => return Err(Problem::NotASocket),
    }
    let mode = file_options.mode.unwrap_or(DEFAULT_MODE);
    // The group's bits are meant for the group that is yet to be set.
    let first_mode = if plan.owner == Owner::default() { mode } else { mode & 0o700 };
    let file = SocketFile::bind(fd, path, folder, first_mode).map_err(Step::Binding.failed())?;
    let bound = file.permissions().map_err(Step::SettingMode.failed())?;
    let baseline = Permissions { mode: DEFAULT_MODE, ..bound };
    set_permissions(&file, permissions(plan, &baseline))?;
    Ok((folders, file, baseline))
}

/// Returns what the path's permissions are to be.
pub(super) fn permissions(plan: &SocketPlan, baseline: &Permissions) -> Permissions {
    Permissions {
        mode: plan.spec.options.mode.unwrap_or(baseline.mode),
        uid: plan.owner.uid.unwrap_or(baseline.uid),
        gid: plan.owner.gid.unwrap_or(baseline.gid),
    }
}

/// Sets owner and mode, with no moment in which the path is more open than before or after.
pub(super) fn set_permissions(file: &SocketFile, wanted: Permissions) -> Result<(), Problem> {
    let set_mode = |mode| file.set_mode(mode).map_err(Step::SettingMode.failed());
    let now = file.permissions().map_err(Step::SettingMode.failed())?;
    if now == wanted {
        return Ok(());
    }
    if (now.uid, now.gid) != (wanted.uid, wanted.gid) {
        set_mode(now.mode & wanted.mode)?;
        file.set_owner(wanted.uid, wanted.gid).map_err(Step::SettingOwner.failed())?;
    }
    set_mode(wanted.mode)
}
