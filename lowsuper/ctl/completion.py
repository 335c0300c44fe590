r"""`lowsuper completion SHELL`: a script that completes verbs, their options, and live names.

It is made from the tables of `lowsuper.ctl`. Names are asked of the master when the key is
pressed; where there is none, nothing is offered.
"""

from __future__ import annotations

from lowsuper.ctl import (
    COMMON,
    NONE,
    OTHER_VERBS,
    SWITCHES,
    VERBS,
    UsageError,
    screen,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowsuper.ctl import Call, Switch

SHELLS = ("bash", "zsh", "fish")
OTHERS = {
    "run": "run a configuration, or a command with its daemons",
    "check": "report what is wrong with a configuration",
    "enter": "a shell or a command in a jail",
    "doctor": "try what this machine lets lowsuper do",
    "help": "an overview",
    "version": "the version",
}
_VALUES = {
    "color": "auto always never",
    "signal": "HUP INT QUIT USR1 USR2 TERM KILL STOP CONT",
    "instance": "",  # those that run
}


def write(call: Call) -> int:
    """Print the script for a shell."""
    shell = call.names[0]
    if shell not in SHELLS:
        raise UsageError(f"completion: {shell}: there is one for {', '.join(SHELLS)}")
    screen.write({"bash": make_bash, "zsh": make_zsh, "fish": make_fish}[shell]())
    return 0


def describe_verbs() -> dict[str, str]:
    """Return all verbs, and what each does."""
    assert OTHERS.keys() == set(OTHER_VERBS), "each has its words"
    return {**{name: verb.text for name, verb in VERBS.items()}, **OTHERS}


def list_switches(verb: str) -> tuple[Switch, ...]:
    """Return the options of a verb."""
    own = tuple(each for each in SWITCHES if each.name in VERBS[verb].switches)
    return (*own, *COMMON)


def _words(verb: str) -> str:
    """Return the options of a verb as words; a letter is that of the first that has it."""
    found: dict[str, None] = {}
    for each in list_switches(verb):
        found[f"--{each.name}"] = None
        if each.letter:
            found[f"-{each.letter}"] = None
    return " ".join(found)


def _with_names() -> list[str]:
    """Return the verbs that take names of daemons."""
    return [name for name, verb in VERBS.items() if verb.names != NONE and name != "completion"]


_BASH = """\
# Completion of lowsuper for bash: source <(lowsuper completion bash)
_lowsuper() {
    local cur=${COMP_WORDS[COMP_CWORD]} line=${COMP_LINE:0:COMP_POINT} word verb= before= master=()
    local words=() i
    # The shell parts words at colons and equal signs, too, which names may hold.
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    local last=$((${#words[@]} - 1)) whole
    whole=${words[last]}
    for ((i = 1; i < last; i++)); do
        word=${words[i]}
        case $word in
            -n|--instance) ((i++)); master=(-n "${words[i]}") ;;
            --instance=*) master=(-n "${word#*=}") ;;
            %(valued)s) [[ $verb || $word == --* ]] && ((i++)) ;;
            -*) ;;
            *) [[ $verb ]] || verb=$word ;;
        esac
    done
    before=${words[last - 1]}
    local found=
    if [[ $verb == logs && $before == -n ]]; then
        return
    fi
    case $before in
        -n|--instance)
            found=$(command lowsuper instances 2>/dev/null | awk 'NR > 1 { print $1 }') ;;
        --color) found="%(color)s" ;;
        -s|--signal) found="%(signal)s" ;;
        --timeout|--lines) return ;;
        *)
            case $verb in
                "") found="%(verbs)s" ;;
%(cases)s
            esac
            if [[ $whole != -* ]]; then
                case $verb in
                    %(named)s)
                        found=$(command lowsuper "${master[@]}" list 2>/dev/null) ;;
                    completion) found="%(shells)s" ;;
                    *) [[ $verb ]] && found= ;;
                esac
            fi ;;
    esac
    local IFS=$'\\n'
    COMPREPLY=($(compgen -W "$(printf '%%s\\n' ${found// /$'\\n'})" -- "$whole"))
    case $verb in
        ""|run|check|enter|doctor)
            local files=($(compgen -f -- "$whole"))
            COMPREPLY+=("${files[@]}") ;;
    esac
    # What stands in front of the last colon or equal sign is not replaced.
    local front=${whole%%"$cur"}
    COMPREPLY=("${COMPREPLY[@]#"$front"}")
}
complete -o filenames -F _lowsuper lowsuper
"""


def make_bash() -> str:
    """Return the script for bash."""
    valued = [each for each in (*SWITCHES, *COMMON) if each.value and each.name != "instance"]
    letters = [f"-{each.letter}" for each in valued if each.letter and each.letter != "n"]
    cases = "\n".join(f'                {name}) found="{_words(name)}" ;;' for name in VERBS)
    return _BASH % {
        "valued": "|".join([*(f"--{each.name}" for each in valued), *letters]),
        "color": _VALUES["color"],
        "signal": _VALUES["signal"],
        "verbs": " ".join(describe_verbs()),
        "cases": cases,
        "named": "|".join(_with_names()),
        "shells": " ".join(SHELLS),
    }


_ZSH = """\
#compdef lowsuper
# Completion of lowsuper for zsh: lowsuper completion zsh > a directory of fpath/_lowsuper
_lowsuper_names() {
    local -a found
    found=(${(f)"$(_call_program names command lowsuper $1 list 2>/dev/null)"})
    compadd -a found
}
_lowsuper_instances() {
    local -a found
    found=(${${(f)"$(_call_program instances command lowsuper instances 2>/dev/null)"}[2,-1]%%%% *})
    compadd -a found
}
_lowsuper() {
    local -a verbs master
    local verb i
    verbs=(
%(verbs)s
    )
    for ((i = 2; i < CURRENT; i++)); do
        case $words[i] in
            -n|--instance) ((i++)); master=(-n $words[i]) ;;
            --instance=*) master=(-n ${words[i]#*=}) ;;
            -*) ;;
            *) verb=$words[i]; break ;;
        esac
    done
    case $verb in
        "")
            if [[ $words[CURRENT-1] == (-n|--instance) ]]; then
                _lowsuper_instances
            else
                _describe -t verbs verb verbs
                _files
            fi ;;
%(cases)s
        run|check|enter|doctor) _files ;;
    esac
}
if [[ $funcstack[1] == _lowsuper ]]; then _lowsuper "$@"; else compdef _lowsuper lowsuper; fi
"""


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _zsh_options(verb: str) -> Iterator[str]:
    taken: set[str] = set()
    for each in list_switches(verb):
        text = each.text.replace("[", "(").replace("]", ")").replace(":", ",")
        words = [f"--{each.name}"]
        if each.letter and each.letter not in taken:
            taken.add(each.letter)
            words.append(f"-{each.letter}")
        values = _VALUES.get(each.name, "")
        action = f"({values})" if values else "_lowsuper_instances" * (each.name == "instance")
        tail = f":{each.value}:{action}" if each.value else ""
        for word in words:
            mark = "=" if each.value and word.startswith("--") else ""
            yield _quote(f"{word}{mark}[{text}]{tail}")


def make_zsh() -> str:
    """Return the script for zsh."""
    verbs = "\n".join(
        " " * 8 + _quote(f"{name}:{text.replace(':', ',')}")
        for name, text in describe_verbs().items()
    )
    named, cases = _with_names(), []
    for name in VERBS:
        options = " ".join(_zsh_options(name))
        rest = _quote("*:daemon:{_lowsuper_names $master}") if name in named else ""
        if name == "completion":
            rest = _quote(f"1:shell:({' '.join(SHELLS)})")
        cases.append(
            f"        {name}) ((CURRENT -= i - 1)); shift $((i - 1)) words;"
            f" _arguments -s -S {options} {rest} ;;".replace("  ;;", " ;;")
        )
    return _ZSH % {"verbs": verbs, "cases": "\n".join(cases)}


def make_fish() -> str:
    """Return the script for fish."""
    verbs = describe_verbs()
    every = " ".join(verbs)
    lines = [
        "# Completion of lowsuper for fish: lowsuper completion fish | source",
        "function __lowsuper_master",
        "    set -l words (commandline -opc)",
        "    for i in (seq 2 (count $words))",
        "        switch $words[$i]",
        "            case -n --instance",
        "                set -l next (math $i + 1)",
        "                test $next -le (count $words); and printf '%s\\n' -n $words[$next]",
        "                return",
        "            case '--instance=*'",
        "                printf '%s\\n' -n (string replace -- --instance= '' $words[$i])",
        "                return",
        "        end",
        "    end",
        "end",
        f"set -l verbs {every}",
    ]
    before = "not __fish_seen_subcommand_from $verbs"
    for name, text in verbs.items():
        lines.append(f'complete -c lowsuper -n "{before}" -a {name} -d {_fish_quote(text)}')
    for name in VERBS:
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        lines.append(f"complete -c lowsuper {seen} -f")
        taken: set[str] = set()
        for each in list_switches(name):
            letter = f" -s {each.letter}" if each.letter and each.letter not in taken else ""
            taken.add(each.letter)
            values = _VALUES.get(each.name, "")
            if each.name == "instance":
                values = "(command lowsuper instances 2>/dev/null | tail -n +2 | cut -d ' ' -f 1)"
            wanted = f" -x -a {_fish_quote(values)}" if each.value else ""
            text = _fish_quote(each.text)
            lines.append(f"complete -c lowsuper {seen}{letter} -l {each.name}{wanted} -d {text}")
    live = _fish_quote("(command lowsuper (__lowsuper_master) list 2>/dev/null)")
    names = " ".join(_with_names())
    lines.append(f"complete -c lowsuper -n '__fish_seen_subcommand_from {names}' -a {live}")
    shells = _fish_quote(" ".join(SHELLS))
    lines.append(f"complete -c lowsuper -n '__fish_seen_subcommand_from completion' -a {shells}")
    return "\n".join(lines) + "\n"


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
