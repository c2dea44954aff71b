//! `liveswap completions`: what a shell needs to complete the command line.

use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::{Shell, generate};

use super::find::running;
use super::output;
use super::report::Status;

/// The names of services, asked for when the shell completes one.
const BASH: &str = r#"
_liveswap_with_services() {
    _liveswap "$@"
    local word="${COMP_WORDS[COMP_CWORD]}"
    case "${COMP_WORDS[1]}" in
        COMMANDS)
            if [[ "$word" != -* && "$COMP_CWORD" -eq 2 ]]; then
                COMPREPLY+=($(compgen -W "$(liveswap completions --services 2>/dev/null)" -- "$word"))
            fi
            ;;
    esac
}
complete -F _liveswap_with_services -o bashdefault -o default liveswap
"#;

const FISH: &str = r#"
complete -c liveswap -n "__fish_seen_subcommand_from COMMANDS" -f -a "(liveswap completions --services 2>/dev/null)"
"#;

/// What zsh is told of the argument that is a service, and what it is to be told.
const ZSH_DEFAULT: &str = "The service; may be left out where one runs:_default";
const ZSH_OURS: &str = "The service; may be left out where one runs:_liveswap_services";
const ZSH: &str = r#"
(( $+functions[_liveswap_services] )) ||
_liveswap_services() {
    compadd -- ${(f)"$(liveswap completions --services 2>/dev/null)"}
}
"#;

/// Arguments of `liveswap completions`.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(required_unless_present = "services")]
    shell: Option<Shell>,
    /// Print the names of the services that run, one a line
    #[arg(long, hide = true)]
    services: bool,
}

/// Prints the completions of `command` for a shell.
pub fn print(args: &CompletionsArgs, command: &Command) -> ExitCode {
    let text = match args.shell {
        Some(shell) if !args.services => script(shell, command),
        _ => running().into_iter().map(|name| name + "\n").collect(),
    };
    // What cannot be written is told at the end.
    let _ = output::lines(&text);
    Status::Done.into()
}

fn script(shell: Shell, command: &Command) -> String {
    let mut text = Vec::new();
    generate(shell, &mut visible(command), "liveswap", &mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    let of_services: Vec<_> = command.get_subcommands().filter(|command| takes_a_service(command)).collect();
    let names = of_services
        .iter()
        .flat_map(|command| [command.get_name()].into_iter().chain(command.get_all_aliases()));
    let names: Vec<_> = names.collect();
    match shell {
        Shell::Bash => text + &BASH.replace("COMMANDS", &names.join("|")),
        Shell::Fish => text + &FISH.replace("COMMANDS", &names.join(" ")),
        Shell::Zsh => {
            let text = text.replace(ZSH_DEFAULT, ZSH_OURS);
            // The first line says what the file is for.
            match text.split_once('\n') {
                Some((first, rest)) => format!("{first}\n{ZSH}{rest}"),
                None => text,
            }
        }
        _ => text,
    }
}

fn takes_a_service(command: &Command) -> bool {
    !command.is_hide_set()
        && command.get_arguments().any(|argument| argument.get_id() == "name" && argument.is_positional())
}

/// Leaves the commands out that are not for people.
fn visible(command: &Command) -> Command {
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Command::new("liveswap").args(command.get_arguments().cloned()).subcommands(shown)
}
