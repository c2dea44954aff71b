//! A service as the liveswap that was written in Node had it: a target, and a control server on TCP.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Diagnostics;
use super::draft::{Draft, in_a_shell, quoted};
use crate::core::spec::ServiceSpec;

/// What keys are called on the command line.
const FLAG_OF_KEY: [(&str, &str); 8] = [
    ("`target`", "`-s`"),
    ("`workers`", "`-f`"),
    ("`tcp` in [control]", "`-a` and `-p`"),
    ("`tcp`", "`-a` and `-p`"),
    ("`head`", "`-H`"),
    ("`pre_upgrade`", "`--pre-upgrade`"),
    ("`token_file`", "`--token-file`"),
    ("`local_owner`", "`--local-owner`"),
];

/// The longest part of a service's name that comes from its target.
const STEM_MAX: usize = 40;

/// What was given.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Original {
    /// The code that runs: a path, absolute or relative to `directory`.
    pub target: String,
    /// Whether it is a Node program; otherwise it is executed by itself.
    pub is_node: bool,
    /// How many workers; as many as there are CPUs where it is not said.
    pub forks: Option<u32>,
    /// The address of the control server.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// Whether the port is the default, which an application that listens there may have instead.
    #[serde(default)]
    pub gives_way: bool,
    /// The file of the token that it asks for, where that is not the manager's own.
    #[serde(default, with = "crate::path_text::option")]
    pub token_file: Option<PathBuf>,
    /// Whether the manager's user and root need no token.
    #[serde(default)]
    pub local_owner: bool,
    /// Where the target that serves is recorded.
    #[serde(default, with = "crate::path_text::option")]
    pub head: Option<PathBuf>,
    /// What runs before an upgrade.
    #[serde(default, with = "crate::path_text::option")]
    pub pre_upgrade: Option<PathBuf>,
    /// Whether workers stop before those that take their places start.
    pub recreate: bool,
    /// The absolute path of the folder that workers start in, symbolic links not resolved.
    #[serde(with = "crate::path_text")]
    pub directory: PathBuf,
}

impl Original {
    /// The name of the service: several are told apart by their ports.
    fn name(&self) -> String {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        // Without its `.` parts, as of a folder that is named so.
        let path: PathBuf = self.directory.join(&self.target).components().collect();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let stem: String = stem.chars().filter(|c| legal(*c)).take(STEM_MAX).collect();
        let stem = stem.trim_start_matches('-');
        format!("{}-{}", if stem.is_empty() { "service" } else { stem }, self.port)
    }

    /// Where the control server listens.
    fn control(&self) -> String {
        let (open, close) = if self.address.contains(':') { ("[", "]") } else { ("", "") };
        format!("{open}{}{close}:{}", self.address, self.port)
    }

    fn draft(&self) -> Draft {
        let mut draft = Draft::of("liveswap");
        let path = |path: &Path| path.to_string_lossy().into_owned();
        draft.file.push_str("[service]\ntarget = ");
        draft.word("-s", &self.target, &quoted(&self.target));
        let (name, protocol) = (self.name(), if self.is_node { "node" } else { "plain" });
        for (key, value) in [("name", quoted(&name)), ("protocol", quoted(protocol))] {
            draft.file.extend(["\n", key, " = ", &value]);
        }
        draft.file.push_str("\nworkers = ");
        match self.forks {
            Some(forks) => draft.word("-f", &forks.to_string(), &forks.to_string()),
            None => draft.file.push_str("\"auto\""),
        }
        draft.file.push_str("\n[control]\ntcp = ");
        let address = format!("{} -p {}", in_a_shell(&self.address), self.port);
        draft.words("-a", &address, &quoted(&self.control()));
        if let Some(token) = &self.token_file {
            draft.file.push_str("\ntoken_file = ");
            draft.word("--token-file", &path(token), &quoted(&path(token)));
        }
        if self.local_owner {
            draft.line.push_str(" --local-owner");
            draft.file.push_str("\nlocal_owner = true");
        }
        // The original answers as soon as the new workers are ready.
        draft.file.push_str("\n[upgrade]\nmin_ready = \"0s\"\n");
        for (key, flag, value) in
            [("head", "-H", &self.head), ("pre_upgrade", "--pre-upgrade", &self.pre_upgrade)]
        {
            if let Some(value) = value {
                draft.file.push_str(key);
                draft.file.push_str(" = ");
                draft.word(flag, &path(value), &quoted(&path(value)));
                draft.file.push('\n');
            }
        }
        if self.recreate {
            draft.line.push_str(" -z");
            draft.file.push_str("strategy = \"recreate\"\n");
        }
        draft
    }
}

/// Makes a service of it; `cpus` is how many workers there are where nobody says.
///
/// # Errors
///
/// All that is wrong with it.
pub fn parse(original: &Original, cpus: u32) -> Result<ServiceSpec, Diagnostics> {
    let mut spec = original.draft().check(&original.directory, cpus, &FLAG_OF_KEY)?;
    spec.control.gives_way = original.gives_way;
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::spec::{Protocol, Strategy};

    fn original() -> Original {
        Original {
            target: "/srv/my app/index 1.js".into(),
            is_node: true,
            forks: Some(2),
            address: "127.0.0.1".into(),
            port: 3000,
            gives_way: true,
            token_file: None,
            local_owner: false,
            head: Some("/srv/HEAD".into()),
            pre_upgrade: Some("./pull.js".into()),
            recreate: true,
            directory: "/srv".into(),
        }
    }

    #[test]
    fn it_is_a_service_like_any_other() {
        let spec = parse(&original(), 8).unwrap();
        assert_eq!((spec.name.as_str(), spec.policy.workers), ("index1-3000", 2));
        assert_eq!(spec.process.command, ["node", "{target}"]);
        assert_eq!(spec.process.target.as_deref(), Some("/srv/my app/index 1.js"));
        assert_eq!((spec.process.protocol, spec.policy.strategy), (Protocol::Node, Some(Strategy::Recreate)));
        assert_eq!(spec.control.tcp, Some("127.0.0.1:3000".parse().unwrap()));
        assert!(spec.control.gives_way);
        assert!(!parse(&Original { gives_way: false, ..original() }, 8).unwrap().control.gives_way);
        assert_eq!(spec.hooks.head, Some("/srv/HEAD".into()));
        assert_eq!(spec.hooks.pre_upgrade, Some("/srv/pull.js".into()));
        let plain = Original { is_node: false, forks: None, address: "::1".into(), ..original() };
        let spec = parse(&plain, 8).unwrap();
        assert_eq!((spec.process.protocol, spec.policy.workers), (Protocol::Plain, 8));
        assert_eq!(spec.process.command, ["{target}"]);
        assert_eq!(spec.control.tcp, Some("[::1]:3000".parse().unwrap()));
    }

    #[test]
    fn the_name_is_one_that_can_be_typed() {
        let name = |target: &str| Original { target: target.into(), ..original() }.name();
        assert_eq!(name("."), "srv-3000");
        assert_eq!(name("./-x.js"), "x-3000");
        assert_eq!(name("/"), "service-3000");
    }

    #[test]
    fn what_is_wrong_is_shown_on_the_line() {
        let wrong = Original { forks: Some(0), address: "nowhere".into(), ..original() };
        let shown = parse(&wrong, 8).unwrap_err().render(false);
        assert!(shown.contains("liveswap -s '/srv/my app/index 1.js' -f 0 -a nowhere -p 3000"), "{shown}");
        assert!(shown.contains("`-f` must be an integer from 1 to 4096"), "{shown}");
        assert!(shown.contains("`-a` and `-p`"), "{shown}");
    }
}
