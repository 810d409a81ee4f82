"""Grammars in EBNF: syntax, bounded and unbounded recursion, and hostile ones."""

from __future__ import annotations

import itertools
import re
import time

import pytest

import unmask
from unmask.errors import GrammarError
from unmask.grammar.byte_automaton import compile_node
from unmask.grammar.constraint import ebnf

JSON = r"""
# JSON, as llama.cpp has it
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (
             string ":" ws value
             ("," ws string ":" ws value)*
           )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= "-"? ([0-9] | [1-9] [0-9]{0,15}) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,15})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""


def language(grammar, depth=3):
    automaton = compile_node(ebnf(grammar, depth).node())
    return lambda text: automaton.accepts(text.encode())


@pytest.mark.parametrize(
    ("grammar", "inside", "outside"),
    [
        ('root ::= "a" | "bc"', ["a", "bc"], ["", "b", "abc"]),
        ('root ::= [a-c]+ other?\nother ::= "-" [^a-z]', ["abc", "a--", "c-é"], ["", "a-b", "-1"]),
        ('root ::= ("x" | "y"){2,3} # comment\n', ["xy", "yyx"], ["x", "xxxx"]),
        ('root ::= "a"{2} [0-9]{1,}', ["aa1", "aa123"], ["a1", "aa"]),
        (r'root ::= "\"\\\n\x41\u00e9"', ['"\\\nAé'], ["A"]),
        ("root ::= . .", ["ab", "éß"], ["a", "a\n"]),
        ('root ::= "a"\n  | "b"', ["a", "b"], ["ab"]),
        ('my-rule ::= "z"\nroot ::= my-rule*', ["", "zz"], ["y"]),
        (r"root ::= [\]\-\\x]+", ["]-\\x"], ["a"]),
        (
            'root ::= x ("," x)* (";" ("," x)*)*\nx ::= [0-9]',
            ["1", "1,2;,3", "1;", "1;;,2,3;"],
            ["", "1,", ";1", "1;2", "1,2;3"],
        ),
        (
            'root ::= "a" ("b" "a")* ("c" ("b" "a")*)*',
            ["a", "acba", "abac", "acbabaccba"],
            ["", "ab", "aca", "acab"],
        ),
        (
            'root ::= "a" "b" ("c" "a" "b")* ("d" "b" ("c" "a" "b")*)*',
            ["ab", "abcab", "abdb", "abcabdbcabdb"],
            ["abd", "abcb", "abdcab"],
        ),
        ('root ::= "a" ("," "a")* ("," "a")*', ["a", "a,a,a"], ["", "a,"]),
        (
            JSON,
            ['{"a": [1, -2.5e3, {"b": null}]}', "{}", '{"x":"\\u00e9"}'],
            ["[1]", '{"a":}', "{a}"],
        ),
    ],
)
def test_a_grammar_has_the_texts_that_it_says(grammar, inside, outside):
    accepts = language(grammar)
    assert all(accepts(text) for text in inside)
    assert not any(accepts(text) for text in outside)


def test_the_language_equals_brute_force_by_rewriting():
    """All texts of up to 5 letters, derived by rewriting the leftmost rule; none nests beyond the depth."""
    rules = {"R": ["aRb", "c", "Rd"], "S": ["R", "SeR"]}
    grammar = 'root ::= s\ns ::= r | s "e" r\nr ::= "a" r "b" | "c" | r "d"'
    found, waiting, seen = set(), ["S"], set()
    while waiting:
        form = waiting.pop()
        match = re.search("[RS]", form)
        if match is None:
            found.add(form)
            continue
        for body in rules[match[0]]:
            new = form[: match.start()] + body + form[match.end() :]
            if len(new) <= 5 and new not in seen:
                seen.add(new)
                waiting.append(new)
    accepts = language(grammar, 3)
    for size in range(6):
        for letters in itertools.product("abcde", repeat=size):
            text = "".join(letters)
            assert accepts(text) == (text in found), text


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_the_depth_is_how_often_a_rule_stands_within_itself(depth):
    accepts = language('root ::= pair\npair ::= "(" pair ")" | "x"', depth)
    for nested in range(8):
        assert accepts("(" * nested + "x" + ")" * nested) == (nested < depth)


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= list\nlist ::= item "," list | item\nitem ::= [a-z]',
        'root ::= list\nlist ::= list "," item | item\nitem ::= [a-z]',
        'root ::= list\nlist ::= list "," list | item\nitem ::= [a-z]',
        'root ::= list\nlist ::= item ("," list)?\nitem ::= [a-z]',
        'root ::= item rest\nrest ::= "," item rest | \nitem ::= [a-z]',
    ],
)
def test_recursion_at_an_end_of_a_rule_is_a_repetition_of_any_length(grammar):
    accepts = language(grammar, 1)
    assert all(accepts(",".join("a" * count)) for count in (1, 2, 3, 50))
    assert not any(accepts(text) for text in ("", "a,", ",a", "aa", "a,,a"))


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= list\nlist ::= item rest\nrest ::= "," list | ""\nitem ::= [a-z]',
        'root ::= list\nlist ::= item rest ""\nrest ::= ("," list)?\nitem ::= [a-z]',
        'root ::= item | more item\nmore ::= item "," | more item ","\nitem ::= [a-z]',
        'root ::= item | start item\nstart ::= root ","\nitem ::= [a-z]',
        'root ::= (start ",")? item\nstart ::= root\nitem ::= [a-z]',
        'root ::= odd\nodd ::= item | item "," even\neven ::= item | item "," odd\nitem ::= "a"',
        'root ::= item ("," root)*\nitem ::= [a-z]',
        'root ::= item ("," other)*\nother ::= item ("," root){0,2}\nitem ::= [a-z]',
        'root ::= item | item ("," root)+\nitem ::= [a-z]',
    ],
)
def test_recursion_through_the_ends_of_other_rules_is_a_repetition_too(grammar):
    accepts = language(grammar, 1)
    assert all(accepts(",".join("a" * count)) for count in (1, 2, 3, 4, 5, 51))
    assert not any(accepts(text) for text in ("", "a,", ",a", "aa", "a,,a"))


def test_two_alternatives_with_the_rule_at_their_end_have_no_depth():
    accepts = language('root ::= "a" ("," root | ";" root)?', 1)
    assert all(accepts(text) for text in ("a", "a,a;a,a", "a;a;a,a,a;a"))
    assert not any(accepts(text) for text in ("", "a,", "a,;a"))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_steps_at_the_end_do_not_count_for_the_depth_of_rules_in_the_middle(depth):
    accepts = language(
        'root ::= list\nlist ::= item rest\nrest ::= "," list | ""\nitem ::= "(" list ")" | [a-z]',
        depth,
    )
    for nested in range(5):
        text = "a,a,a," + "(b,b,b," * nested + "c,c" + ",d,d,d)" * nested + ",e,e"
        assert accepts(text) == (nested < depth)
        assert not accepts(text + ",")


BAD = [
    ("", "no rule root"),
    ('start: "a"', "Lark's form"),
    ('main ::= "a"', "no rule root"),
    ("root ::= other", "other is no rule"),
    ('root ::= "a"\nroot ::= "b"', "defined twice"),
    ('root ::= ("a"', "closing parenthesis"),
    ('root ::= "a")', "without an opening one"),
    ('root ::= * "a"', "quantifier"),
    ('root ::= "a"**', "two quantifiers"),
    ('root ::= "a"{3,2}', "wrong order"),
    ('root ::= "a"{99999}', "10000 repetitions"),
    ('root ::= "a', "line 1"),
    (r'root ::= "\q"', "escape"),
    (r'root ::= "\ud800"', "no character"),
    ("root ::= [z-a]", "wrong order"),
    (r"root ::= [\\\1]", r"the escape \1 is not known"),
    (r"root ::= [\01]", r"the escape \01 is not known"),
    ('"a"', "rule should begin"),
    ('root ::= "a" root', "never end: root"),
    ('root ::= a\na ::= b "x"\nb ::= a "y"', "never end: a, b, root"),
    (3, "must be a text"),
]


@pytest.mark.parametrize(("grammar", "words"), BAD)
def test_what_is_no_grammar_is_refused_in_plain_words(grammar, words):
    with pytest.raises(GrammarError, match=re.escape(words)):
        ebnf(grammar)


@pytest.mark.parametrize("depth", [0, 9, True, 1.5])
def test_a_depth_outside_1_to_8_is_refused(depth):
    with pytest.raises(GrammarError, match="1 to 8"):
        ebnf('root ::= "a"', depth)


HOSTILE = {
    "bushy": 'root ::= a\na ::= "x" a "y" a "z" a "w" | "v" a "u" a "t" | "s"',
    "chain": "root ::= r0\n"
    + "".join(f'r{i} ::= "a" r{i + 1} "b"\n' for i in range(800))
    + 'r800 ::= "c"',
    "doubling": "root ::= d0\n"
    + "".join(f"d{i} ::= d{i + 1} d{i + 1}\n" for i in range(30))
    + 'd30 ::= "a"',
    "ends": "root ::= r0\n"
    + "".join(
        f'r{i} ::= "a" r{(7 * i + 1) % 300} r{(5 * i + 2) % 300} | "b"\n' for i in range(300)
    ),
    "groups": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000,
    "counts": 'root ::= (("a"{1000}){1000}){1000}',
    "comments": "root ::= a " + "#" * 20000,
    "stars": 'root ::= "a"' + "*" * 20000,
    "rules": "".join(f'r{i} ::= "a"\n' for i in range(3000)),
    "classes": "root ::= " + "[^a] " * 10000,
    "names": "root ::= " + "x " * 30000,
    "long": 'root ::= "' + "a" * 70000 + '"',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_refused_soon(name):
    began = time.process_time()
    with pytest.raises(GrammarError):
        compile_node(ebnf(HOSTILE[name], 8).node())
    assert time.process_time() - began < 5


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_answers_of_a_model_belong_to_the_grammar(demo_llm, temperature):
    grammar = (
        'root ::= sum ("; " sum)*\nsum ::= number "+" number | "(" sum ")"\nnumber ::= [0-9]{1,2}'
    )
    accepts = language(grammar, 2)
    found = demo_llm.generate(
        ["1+1", "What is 2 + 3?"], "threshold", gen_length=12, temperature=temperature,
        constraint=unmask.ebnf(grammar, depth=2),
    )  # fmt: skip
    for output in found:
        assert accepts(output.text), output.text


def test_the_command_line_reads_a_grammar_from_a_file(tmp_path, capsys):
    from unmask.cli.main import main

    file = tmp_path / "answer.gbnf"
    file.write_text('root ::= "yes" | "no"')
    words = ["generate", "Is 7 odd?", "--gen-length", "8"]
    assert main([*words, "--grammar", str(file)]) == 0
    assert capsys.readouterr().out.strip() in ("yes", "no")
    assert main([*words, "--grammar", str(tmp_path / "missing")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main([*words, "--grammar", str(file), "--regex", "a"]) == 2
    assert "--regex and --grammar" in capsys.readouterr().err
