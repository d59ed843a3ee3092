"""Which programming language a file is written in, told by how its name ends.

Only what people program in: prose (Markdown) and data (JSON, lock files) would drown the code they
lie beside. A table and not a guess at the content, so that the answer is the same for ever.
"""

from collections import Counter
from collections.abc import Iterable

_EXTENSIONS = {
    "Ada": "adb ads",
    "Assembly": "asm s",
    "C": "c h",
    "C#": "cs",
    "C++": "c++ cc cpp cxx h++ hh hpp hxx ipp",
    "CSS": "css less sass scss",
    "Clojure": "clj cljc cljs",
    "Cython": "pxd pyx",
    "D": "d",
    "Dart": "dart",
    "Elixir": "ex exs",
    "Elm": "elm",
    "Erlang": "erl hrl",
    "F#": "fs fsi fsx",
    "Fortran": "f f03 f08 f77 f90 f95 for",
    "GDScript": "gd",
    "Go": "go",
    "Groovy": "gradle groovy",
    "HTML": "htm html",
    "Haskell": "hs lhs",
    "Java": "java",
    "JavaScript": "cjs js jsx mjs",
    "Julia": "jl",
    "Kotlin": "kt kts",
    "Lisp": "cl el lisp scm",
    "Lua": "lua",
    "Nim": "nim",
    "Nix": "nix",
    "OCaml": "ml mli",
    "Objective-C": "m mm",
    "PHP": "php",
    "Pascal": "pas pp",
    "Perl": "pl pm",
    "PowerShell": "ps1 psm1",
    "Protocol Buffers": "proto",
    "Python": "py pyi",
    "R": "r",
    "Racket": "rkt",
    "Ruby": "rb",
    "Rust": "rs",
    "SQL": "pks pkb plsql sql",
    "Scala": "sc scala",
    "Shell": "bash fish sh zsh",
    "Solidity": "sol",
    "Structured Text": "st",
    "Svelte": "svelte",
    "Swift": "swift",
    "TTCN-3": "ttcn ttcnpp",
    "Tcl": "tcl",
    "Terraform": "hcl tf",
    "TypeScript": "cts mts ts tsx",
    "VHDL": "vhd vhdl",
    "Verilog": "sv svh v",
    "Vue": "vue",
    "Zig": "zig",
}
_LANGUAGES = {
    extension: language
    for language, extensions in _EXTENSIONS.items()
    for extension in extensions.split()
}


def language_of(path: str) -> str | None:
    """Return the programming language of a file, or None where it is in none."""
    stem, dot, extension = path.rpartition("/")[2].rpartition(".")
    return _LANGUAGES.get(extension.lower()) if stem and dot else None


def commonest_language(paths: Iterable[str]) -> str | None:
    """Return the language most of these files are written in; of equals, the first by name."""
    counted = Counter(language for path in paths if (language := language_of(path)))
    return min(counted, key=lambda language: (-counted[language], language), default=None)
