"""What makes a shell complete verbs, presets and the fields of a config.

Usage: twintrain completion bash|zsh|fish

In ~/.bashrc:                   eval "$(twintrain completion bash)"
In ~/.zshrc, after compinit:    eval "$(twintrain completion zsh)"
In ~/.config/fish/config.fish:  twintrain completion fish | source
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from coretrain.base.errors import Options
from coretrain.base.help import Fitted
from coretrain.config.fields import Section
from coretrain.config.load import fields, presets
from twintrain.verbs import PRESETS, SHELLS, SWITCH, VERBS, Values, Verb

PROGRAM = "twintrain completion"
LONGEST = 72
"""Characters of a field's meaning, beside its name in zsh and fish."""
BASH = """\
_twintrain() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} verb=${{COMP_WORDS[1]}} own words
    local fields="{fields}"
    COMPREPLY=()
    if (( COMP_CWORD == 1 )); then
        words="{verbs}"
        [[ $word == -* ]] && words="--help --version"
        COMPREPLY=($(compgen -W "$words" -- "$word"))
        return
    fi
    # bash takes --option=value for three words
    if [[ $word == "=" ]]; then
        word=
    elif [[ $before == "=" ]]; then
        before=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    case "$verb $before" in
{values}
    esac
    case $verb in
{own}
        *) return ;;
    esac
    [[ $word == -* ]] && words="--help $own"
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o bashdefault -o default -F _twintrain twintrain
"""
ZSH = """\
#compdef twintrain
_twintrain() {{
    local verb=$words[2] before=$words[CURRENT-1]
    local -a verbs own fields places
    if (( CURRENT == 2 )); then
        verbs=({verbs})
        _describe -t verbs verb verbs
        [[ $PREFIX == -* ]] && compadd -- --help --version
        return
    fi
    if [[ $PREFIX == --*=* ]]; then
        before=${{PREFIX%%=*}}
        compset -P '*='
    fi
    case "$verb $before" in
{values}
    esac
    fields=(
{fields}
    )
    case $verb in
{own}
        *) return ;;
    esac
    if [[ $PREFIX == -* ]]; then
        own+=(--help)
        _describe -o -t options option own
        return
    fi
    (( $#places )) && compadd -- $places
    _files
}}
if [[ $funcstack[1] == _twintrain ]]; then
    _twintrain "$@"
else
    compdef _twintrain twintrain
fi
"""
FISH = """\
function __twintrain_verb
    set -l words (commandline -opc)
    test (count $words) -ge 2; and contains -- $words[2] $argv
end
complete -c twintrain -e
set -l first 'test (count (commandline -opc)) -eq 1'
{lines}
"""


def options(program: str = PROGRAM) -> Options:
    """What can be asked for."""
    text = (__doc__ or "").replace(PROGRAM, program)
    parser = Options(prog=program, description=text, formatter_class=Fitted)
    parser.add_argument("shell", choices=SHELLS)
    return parser


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Print the script."""
    shell = options(program).parse_args(sys.argv[1:] if argv is None else argv).shell
    print({"bash": bash, "zsh": zsh, "fish": fish}[shell](), end="")
    return 0


def choices(section: type[Section], leaf: str) -> tuple[str, ...]:
    """The values that a field may have; none where there are too many to list."""
    found: list[str] = []

    def collect(schema: Mapping[str, Any]) -> None:
        found.extend(map(str, schema.get("enum", [schema["const"]] if "const" in schema else [])))
        found.extend(["true", "false"] if schema.get("type") == "boolean" else [])
        for one in schema.get("anyOf", ()):
            collect(one)

    collect(section.model_json_schema()["properties"][leaf])
    return tuple(dict.fromkeys(found))


def _meaning(section: type[Section], leaf: str) -> str:
    words = (section.model_fields[leaf].description or "").partition(". ")[0].rstrip(".")
    return words if len(words) <= LONGEST else words[: LONGEST - 3] + "..."


def _listed(values: Values) -> tuple[str, ...]:
    return tuple(presets()) if values is PRESETS else values or ()


def _places(verb: Verb) -> tuple[str, ...]:
    """What may stand among a verb's words beside files."""
    return _listed(verb.words) if verb.words is PRESETS else ()


def _quoted(text: str) -> str:
    """In single quotes, for all three shells."""
    return "'" + text.replace("'", "'\\''") + "'"


def _by_values() -> dict[tuple[str, ...], list[str]]:
    """Patterns of "VERB OPTION" for bash and zsh, by the values that come next: a file or a text where there are none.

    A field is the same for every verb. "VERB VERB" is the place after the verb, where one word of a few must stand.
    """
    own = [
        (f'"{name} {o}"', _listed(v))
        for name, verb in VERBS.items()
        for o, v in verb.options.items()
        if v is not SWITCH
    ]
    own += [
        (f'"{name} {name}"', verb.words) for name, verb in VERBS.items() if verb.words and verb.words is not PRESETS
    ]
    found: dict[tuple[str, ...], list[str]] = {}
    for pattern, values in [*own, *((f'*" --{name}"', choices(*place)) for name, place in fields().items())]:
        found.setdefault(values, []).append(pattern)
    return found


def bash() -> str:
    """For bash, 3.2 of macOS too."""
    values = [
        f"        {'|'.join(patterns)})\n            "
        + (f'COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$word"))\n            ' if words else "")
        + "return ;;"
        for words, patterns in _by_values().items()
    ]
    own = [
        f'        {name}) own="{" ".join(verb.options)}{" $fields" if verb.fields else ""}"'
        f' words="{" ".join(_places(verb))}" ;;'
        for name, verb in VERBS.items()
    ]
    return BASH.format(
        verbs=" ".join(VERBS),
        values="\n".join(values),
        fields=" ".join(f"--{name}" for name in fields()),
        own="\n".join(own),
    )


def zsh() -> str:
    """For zsh: with what each verb and each field means."""
    values = [
        f"        {'|'.join(patterns)})\n            {'compadd -- ' + ' '.join(words) if words else '_files'}\n"
        "            return ;;"
        for words, patterns in _by_values().items()
    ]
    own = [
        f"        {name}) own=({' '.join(verb.options)}{' $fields' if verb.fields else ''})"
        f" places=({' '.join(_places(verb))}) ;;"
        for name, verb in VERBS.items()
    ]
    return ZSH.format(
        verbs=" ".join(_quoted(f"{name}:{verb.summary}") for name, verb in VERBS.items()),
        values="\n".join(values),
        fields="\n".join(f"        {_quoted(f'--{name}:{_meaning(*place)}')}" for name, place in fields().items()),
        own="\n".join(own),
    )


def fish() -> str:
    """For fish: with what each verb and each field means."""
    lines = [f"complete -c twintrain -n $first -f -a {name} -d {_quoted(verb.summary)}" for name, verb in VERBS.items()]
    lines += [f"complete -c twintrain -n $first -l {name}" for name in ("help", "version")]
    for name, verb in VERBS.items():
        on = f"complete -c twintrain -n '__twintrain_verb {name}'"
        lines.append(f"{on} -l help")
        if words := _listed(verb.words):
            lines.append(f"{on} {'' if verb.words is PRESETS else '-f '}-a '{' '.join(words)}'")
        lines += [f"{on} {_fish_option(option, values)}" for option, values in verb.options.items()]
    on = f"complete -c twintrain -n '__twintrain_verb {' '.join(name for name, verb in VERBS.items() if verb.fields)}'"
    lines += [
        f"{on} {_fish_option(f'--{name}', choices(*place))} -d {_quoted(_meaning(*place))}"
        for name, place in fields().items()
    ]
    return FISH.format(lines="\n".join(lines))


def _fish_option(option: str, values: Values) -> str:
    name = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
    if values is SWITCH:
        return name
    words = _listed(values)
    return f"{name} -x -a '{' '.join(words)}'" if words else f"{name} -r"
