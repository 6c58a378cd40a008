#!/usr/bin/env python3
"""Compares our template interpreter with jinja2 on random templates.

usage: chat_template_fuzz.py TEST_TEXT_BINARY [--count N] [--seed S]

Templates come from a grammar that knows types, so that most of them render; the others must fail on both sides. They stay off
what the interpreter refuses on purpose (integers of more than 64 bits, printed generators, ...). Every string of the variables
holds the marker that the test looks for in text that counts as the template's.
"""
import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

from make_chat_template_cases import attempt, environment

VARIABLES = {
    "s": "Hello, wörld¶", "pad": " ¶x \n", "mixed": "a¶-b c\tΣÉß <q>&\"'", "empty": "", "n": 7, "neg": -3, "zero": 0, "f": 2.5, "t": True,
    "no": False, "nil": None, "bos_token": "<s>",
    "ints": [3, 1, 2, 1], "void": [], "words": ["b¶", "A¶", "c¶", "a¶"], "nested": [["k¶", 1], ["x¶", None]], 
    "d": {"b¶": 1, "a": [1.0, "two¶"], "k": "v¶", "get": "shadow¶", "Z": None},
    "people": [{"name": "Ann¶", "age": 31, "tags": {"x": 1}}, {"name": "bob¶", "age": 9}, {"name": "Cyd¶", "age": 31, "vip": True}],
    "messages": [{"role": "system", "content": "S¶"}, {"role": "user", "content": "U¶ 中🎉"},
                 {"role": "assistant", "content": None, "tool_calls": [{"name": "f¶", "arguments": {"x": [1, "¶"]}}]},
                 {"role": "tool", "content": [{"type": "text", "text": "T¶"}]}],
    "tree": [{"v": "1¶", "kids": [{"v": "2¶", "kids": []}, {"v": "3¶", "kids": [{"v": "4¶"}]}]}],
}
TEXTS = ["", " ", "\n", "x", "ab c", "<|u|>", "  y\n", "é中", "A b", "a-b_c", "'", '"q"', "{{", "%s", "\\", "🎉", "SS", ", "]


class Grammar:
    def __init__(self, rng):
        self.rng = rng
        self.scope = []  # (name, type) that loops, macros and set made
        self.loops = 0

    def pick(self, *choices):
        return self.rng.choice(choices)

    def literal(self):
        return json.dumps(self.rng.choice(TEXTS), ensure_ascii=False)

    def known(self, kind):
        names = [name for name, of in self.scope if of == kind]
        return self.rng.choice(names) if names and self.rng.random() < 0.5 else None

    def expr(self, kind, depth):
        if self.rng.random() < 0.025:  # the wrong type
            kind = self.pick("str", "int", "bool", "list", "dict", "any")
        name = self.known(kind)
        if name:
            return name
        return getattr(self, kind)(depth - 1)

    # ------------------------------------------------------------------------------------------------ types
    def any(self, depth):
        return self.expr(self.pick("str", "str", "int", "bool", "list", "dict", "odd"), depth)

    def odd(self, depth):
        return self.pick("nil", "missing", "missing.x", "none", "f", "d.zz", "(1, 'a')", "messages[2]", "ints[9]", "[][0]", "1 if no")

    def str(self, depth):
        if depth <= 0:
            return self.pick("s", "pad", "mixed", "empty", "bos_token", self.literal(), self.literal(), "words[0]", "d.k", "people[0].name",
                             "messages[1].content", "messages[0]['role']", "s[:3]")
        e = lambda kind="str": self.expr(kind, depth)
        options = [
            lambda: f"({e()} ~ '')|reverse", lambda: f"({e()} + {e()})", lambda: f"({e()} ~ {e('any')})", lambda: f"({e()} * {self.pick(0, 1, 2, 3)})",
            lambda: f"{e()}|{self.pick('upper', 'lower', 'capitalize', 'title', 'trim', 'string', 'first', 'last')}",
            lambda: f"(({e()}|{self.pick('safe', 'escape', 'forceescape', 'e|e', 'safe|upper', 'e|trim')} + {e()})[{self.slice()}] ~ {e()})",
            lambda: f"({e()}).{self.pick('upper', 'lower', 'strip', 'lstrip', 'rstrip', 'title', 'capitalize', 'swapcase')}()",
            lambda: f"({e()}).{self.pick('strip', 'lstrip', 'rstrip')}({self.pick('none', self.literal())})",
            lambda: f"({e()} ~ '')[{self.slice()}]", lambda: f"({e()})[{self.pick(0, 1, -1, 3, 99)}]",
            lambda: f"({e()}).split({self.pick('', self.literal(), 'none, 1', repr('-') + ', 1', 'maxsplit=1')})[{self.pick(0, -1, 1)}]",
            lambda: f"({e()}).rsplit({self.pick('', self.literal(), 'none, 1')})[{self.pick(0, -1)}]",
            lambda: f"({e()}).partition({self.pick(repr('-'), repr('ö'), self.literal())})[{self.pick(0, 1, 2)}]",
            lambda: f"({e()}).replace({self.literal()}, {e()}{self.pick('', ', 1', ', 2')})",
            lambda: f"{e()}|replace({self.literal()}, {e()}{self.pick('', ', 1')})",
            lambda: f"({e()}).join({e('words_list')})", lambda: f"{e('list')}|join({self.pick('', e())})",
            lambda: f"{e('any')}|tojson{self.pick('', '(indent=2)', '(ensure_ascii=true)', '(sort_keys=true)', '(separators=(repr, x))').replace('repr, x', chr(39) + ',' + chr(39) + ', ' + chr(39) + ':' + chr(39))}",
            lambda: f"({e()} if {e('bool')} else {e()})", lambda: f"({e()} or {e()})", lambda: f"({e('any')}|string)",
            lambda: f"{e('odd')}|default({e()}{self.pick('', ', true')})", lambda: f"{e()}|indent({self.pick('', '2', '2, true', 'blank=true')})",
            lambda: f"({e()}).{self.pick('ljust', 'rjust', 'center')}({self.pick(3, 8, 11)}{self.pick('', ', ' + repr('*'))})",
            lambda: f"({e()}).{self.pick('removeprefix', 'removesuffix')}({self.literal()})", lambda: f"({e('int')}|string).zfill({self.pick(1, 5)})",
            lambda: f"({self.pick(repr('%s'), repr('<%5s>'), repr('%.3s%%'), repr('%r'))} % ({e()},))", lambda: f"({self.pick(repr('<%5s|%-6s>'), repr('%s%s'))} % ({e()}, {e()}))",
            lambda: f"({repr('%(k)s|%(Z)r')} % {self.pick('d', e('dict'))})", lambda: f"{repr('%s-%s')}|format({e()}, {e('any')})",
            lambda: f"({self.pick(repr('%d'), repr('%05d'), repr('%+d'), repr('%x'), repr('%8.3f'), repr('%e'), repr('%s'), repr('% d'), repr('%-6d'))} % {e('int')})",
            lambda: f"{self.pick(repr('{}'), repr('{0}{0}'), repr('a{:>8}b'), repr('{:*^9}'), repr('{!r}'), repr('{{{}}}'), repr('{:.2s}'))}.format({e()})",
            lambda: f"{self.pick(repr('{:d}'), repr('{:,}'), repr('{:06.2f}'), repr('{:+}'), repr('{:#x}'), repr('{:<5}|'), repr('{:.1%}'), repr('{:e}'))}.format({e('int')})",
            lambda: f"{repr('{a}{b[0]}{c.name}')}.format(a={e()}, b={e('list')}, c={e('dict')})", lambda: f"{e()}|truncate({self.pick(5, 9)}{self.pick('', ', true', ', false, ' + repr('~') + ', 0')})",
            lambda: f"{e('list')}|map({self.pick(repr('string'), repr('upper'), repr('tojson'))})|join(', ')",
            lambda: f"{e('any')}", lambda: f"{e('dict_list')}|map(attribute={self.pick(repr('name'), repr('role'), repr('age'), repr('tags.x'))}{self.pick('', ', default=' + repr('?'))})|join",
        ]
        return self.rng.choice(options)()

    def slice(self):
        bound = lambda: self.pick("", "", "1", "-1", "2", "-2", "99", "-99")
        return bound() + ":" + bound() + self.pick("", "", ":", ":2", ":-1", ":-2")

    def int(self, depth):
        if depth <= 0:
            return self.pick("n", "neg", "zero", "1", "2", "3", "10", "f", "1.5", "t", "people[1].age")
        e = lambda kind="int": self.expr(kind, depth)
        options = [
            lambda: f"({e()} {self.pick('+', '-', '*')} {e()})", lambda: f"({e()} {self.pick('//', '%', '/')} {self.pick('2', '3', '-2', '1.5', 'n')})",
            lambda: f"{e('list')}|{self.pick('length', 'count')}", lambda: f"(-{self.pick('n', 'f', '3')})",
            lambda: f"({e('str')})|{self.pick('length', 'wordcount')}", lambda: f"{e('str')}|{self.pick('int', 'int(-1)', 'float', 'int(0, 16)')}",
            lambda: f"({self.pick(2, 3, -2)} ** {self.pick(0, 1, 2, 3, 5)})", lambda: f"({e()})|{self.pick('abs', 'round', 'int', 'float', 'round(1)')}",
            lambda: f"({e('str')}).{self.pick('find', 'rfind', 'count', 'index')}({self.pick(self.literal(), repr('ö'))}{self.pick('', ', 1', ', -3', ', 1, 4', ', 99')})",
            lambda: f"{e('ints_list')}|{self.pick('sum', 'min', 'max', 'first', 'last')}", lambda: f"({e('list')}).{self.pick('index', 'count', 'count', 'count')}({e('any')})",
            lambda: f"({e()} if {e('bool')} else {e()})", lambda: f"{self.pick('people', 'people', e('dict_list'))}|sum(attribute='age', start={e()})",
        ]
        return self.rng.choice(options)()

    def bool(self, depth):
        if depth <= 0:
            return self.pick("t", "no", "true", "false", "nil", "missing", "n", "words", "void", "empty", "d.vip")
        e = lambda kind="bool": self.expr(kind, depth)
        options = [
            lambda: f"({e('int')} {self.pick('<', '<=', '>', '>=', '==', '!=')} {e('int')})", lambda: f"({e('str')} {self.pick('==', '!=', '<', '>')} {e('str')})",
            lambda: f"({e('int')} < {e('int')} <= {e('int')})", lambda: f"({e('str')} {self.pick('in', 'not in')} {e('str')})",
            lambda: f"({e('any')} {self.pick('in', 'not in')} {e('list')})", lambda: f"({e('str')} in {e('dict')})",
            lambda: f"({e()} and {e()})", lambda: f"({e()} or {e()})", lambda: f"(not {e()})", lambda: f"({e('any')} == {e('any')})",
            lambda: f"({e('any')} is {self.pick('', 'not ')}{self.pick('defined', 'undefined', 'none', 'string', 'number', 'integer', 'float', 'boolean', 'mapping', 'sequence', 'iterable', 'true', 'false', 'callable', 'escaped')})",
            lambda: f"({e('int')} is {self.pick('odd', 'even', 'divisibleby 2', 'divisibleby(3)', 'eq 1', 'ne(2)', 'lt 3', 'ge(0)', 'gt 1', 'in [1, 2, 3]')})",
            lambda: f"({e('str')} is {self.pick('lower', 'upper', 'equalto ' + repr('x'), 'in ' + repr('abc'))})",
            lambda: f"({e('str')}).{self.pick('startswith', 'endswith')}({self.pick(self.literal(), repr('ö'), '(' + self.literal() + ', ' + repr('H') + ')')}{self.pick('', '', ', 1', ', 1, 3')})",
            lambda: f"({e('str')}).{self.pick('isdigit', 'isalpha', 'isspace', 'isupper', 'islower', 'istitle', 'isascii', 'isalnum', 'isprintable')}()",
        ]
        return self.rng.choice(options)()

    def words_list(self, depth):
        e = lambda kind: self.expr(kind, depth)
        return self.pick("words", f"[{e('str')}, {e('str')}]", f"({e('str')}).split()", f"({e('str')})|list", f"({e('str')}).splitlines({self.pick('', 'true')})",
                         "words|sort", "words|unique|list", "d|list", "words|map('lower')|list")

    def ints_list(self, depth):
        e = lambda kind: self.expr(kind, depth)
        return self.pick("ints", "range(4)|list", f"[{e('int')}, {e('int')}]", "ints|sort", "ints|unique|list", "range(1, 9, 3)|list", f"ints|{self.pick('select', 'reject')}('{self.pick('odd', 'even')}')|list",
                         f"ints|select('gt', {e('int')})|list")

    def dict_list(self, depth):
        return self.pick("people", "messages", "tree", f"people|{self.pick('selectattr', 'rejectattr')}({self.pick(repr('vip'), repr('vip') + ', ' + repr('defined'), repr('age') + ', ' + repr('gt') + ', 10', repr('name') + ', ' + repr('equalto') + ', people[0].name')})|list",
                         "people|sort(attribute='age')", "people|sort(attribute='age,name', reverse=true)", "messages|selectattr('role', 'in', ['user', 'tool'])|list", "messages[::-1]", "messages[1:]")

    def list(self, depth):
        if depth <= 0:
            return self.pick("ints", "words", "void", "[]", "nested", "[1, 'x']", "(1, 2)", "people", "range(3)|list")
        e = lambda kind: self.expr(kind, depth)
        options = [
            lambda: self.words_list(depth - 1), lambda: self.ints_list(depth - 1), lambda: self.dict_list(depth - 1), lambda: f"({e('words_list')} + {e('words_list')})",
            lambda: f"({e('list')}|list)[{self.slice()}]", lambda: f"({e('list')})|reverse|list", lambda: f"{e('list')}|list", lambda: f"[{e('any')}, {e('any')}]",
            lambda: f"({e('any')}, {e('any')})", lambda: f"{e('dict')}|{self.pick('dictsort', 'items|list', 'list')}", lambda: f"({e('dict')}).{self.pick('keys', 'values', 'items')}()|list",
            lambda: f"{e('list')}|batch({self.pick(1, 2, 3)}{self.pick('', ', ' + repr('-'))})|list", lambda: f"{e('list')}|slice({self.pick(1, 2, 3)}{self.pick('', ', ' + repr('-'))})|list",
            lambda: f"people|groupby({self.pick(repr('age'), repr('name'), repr('vip') + ', default=false')})", lambda: f"{e('words_list')}|sort{self.pick('', '(reverse=true)', '(case_sensitive=true)')}",
            lambda: f"{e('words_list')}|unique{self.pick('', '(true)')}|list", lambda: f"({e('list')} * {self.pick(0, 1, 2)})", lambda: f"nested|map({self.pick('first', 'last', 'length').join(chr(39) * 2)})|list",
            lambda: f"{e('words_list')}|map('replace', {self.literal()}, {e('str')})|list",
        ]
        return self.rng.choice(options)()

    def dict(self, depth):
        if depth <= 0:
            return self.pick("d", "people[0]", "messages[2]", "{}", "{'a': 1}")
        e = lambda kind: self.expr(kind, depth)
        return self.pick(f"{{{self.literal()}: {e('any')}, 'name': {e('str')}}}", f"dict(name={e('str')}, x={e('any')})", f"dict(d, **{e('dict')})", "messages[2].tool_calls[0]",
                         f"{{{e('str')}: {e('int')}}}", f"dict({e('dict')}, a={e('any')})", f"people|{self.pick('first', 'last')}", f"dict([['q', {e('any')}]])", f"({e('dict')}).copy()")

    # ------------------------------------------------------------------------------------------------ statements
    def open(self, tag):
        return "{%" + self.pick("", "", "-", "+") + " " + tag + " " + self.pick("", "", "-") + "%}"

    def text(self):
        return self.pick("", "\n", " ", "x", "\n  ", "a b\n", "<|t|>", "\n\n", "  ", "{# c #}", "{#- c -#}\n", "{% raw %}{{ x }}{% endraw %}")

    def body(self, depth, count=None):
        size = len(self.scope)
        out = "".join(self.statement(depth) + self.text() for _ in range(count or self.rng.randint(1, 3)))
        del self.scope[size:]
        return out

    def output(self, depth):
        return "{{" + self.pick("", "-") + " " + self.expr(self.pick("str", "str", "any", "int", "bool", "list", "dict"), 3) + " " + self.pick("", "-") + "}}"

    def statement(self, depth):
        if depth <= 0:
            return self.output(depth)
        kind = self.rng.choice(["output"] * 5 + ["set", "set_tuple", "set_block", "if", "for", "for", "for_items", "for_filter", "macro", "macro", "call", "recursive", "with", "filter", "namespace",
                                                 "generation", "joiner", "break", "closure", "special", "set_loop"])
        return getattr(self, "st_" + kind)(depth - 1)

    def name(self):
        return self.pick("a", "b", "c", "x", "y")

    def st_output(self, depth):
        return self.output(depth)

    def st_set(self, depth):
        kind = self.pick("str", "int", "list", "dict", "bool", "any")
        name, value = self.name(), self.expr(kind, 2)
        self.scope.append((name, kind))
        return self.open(f"set {name} = {value}")

    def st_set_tuple(self, depth):
        out = self.open(f"set {self.pick('x, y', '(x, y)', 'x, (y, c)')} = {self.expr('str', 1)}, {self.pick(self.expr('str', 1), '(1, ' + self.expr('str', 1) + ')')}")
        self.scope += [("x", "str"), ("y", "any")]
        return out

    def st_set_block(self, depth):
        name = self.name()
        out = self.open(f"set {name}{self.pick('', ' | upper', ' | trim | replace(' + self.literal() + ', ' + repr('z') + ')')}") + self.text() + self.body(depth) + self.open("endset")
        self.scope.append((name, "str"))
        return out

    def st_if(self, depth):
        out = self.open(f"if {self.expr('bool', 2)}") + self.text() + self.body(depth)
        for _ in range(self.rng.randint(0, 2)):
            out += self.open(f"elif {self.expr('bool', 2)}") + self.text() + self.body(depth)
        return out + self.pick("", self.open("else") + self.body(depth)) + self.open("endif")

    def loop_output(self):
        return self.pick("", "{{ loop.index }}", "{{ loop.index0 }}{{ loop.last }}", "{{ loop.revindex }}{{ loop.first }}", "{{ loop.length }}", "{{ loop.cycle('p', s) }}", "{{ loop.previtem is defined }}",
                         "{{ loop.nextitem|default('-') is string }}", "{{ loop.changed(loop.index // 2) }}", "{{ loop.depth }}{{ loop.revindex0 }}", "{{ ', ' if not loop.last }}")

    def loop(self, head, names, depth, recursive=""):
        size = len(self.scope)
        self.scope += names
        self.loops += 1
        out = self.open(f"{head}{recursive}") + self.loop_output() + self.text() + self.body(depth) + self.loop_output()
        self.loops -= 1
        del self.scope[size:]
        return out + self.pick("", "", self.open("else") + self.body(depth, 1)) + self.open("endfor")

    def st_for(self, depth):
        kind, of = self.pick(("words_list", "str"), ("ints_list", "int"), ("dict_list", "dict"), ("list", "any"), ("str", "str"))
        name = self.name()
        return self.loop(f"for {name} in {self.expr(kind, 2)}", [(name, of)], depth)

    def st_for_items(self, depth):
        source = self.pick("(" + self.expr("dict", 2) + ").items()", self.expr("dict", 2) + "|items", self.expr("dict", 2) + "|dictsort", "nested", "words|batch(2)", "people|groupby('age')")
        return self.loop(f"for {self.pick('x, y', '(x, y)')} in {source}", [("x", "str"), ("y", "any")], depth)

    def st_for_filter(self, depth):
        name = self.name()
        self.scope.append((name, "int"))
        test = self.expr("bool", 2)
        self.scope.pop()
        return self.loop(f"for {name} in {self.expr('ints_list', 2)} if {test}", [(name, "int")], depth)

    def st_set_loop(self, depth):
        return self.open("set x = 'o'") + "{% for i in ints %}{{ x }}" + self.open(f"set x = {self.expr('str', 1)}") + self.body(depth, 1) + "{{ x }}{% endfor %}{{ x }}"

    def st_break(self, depth):
        if not self.loops:
            return self.output(depth)
        return self.open(f"if {self.expr('bool', 2)}") + "{% " + self.pick("break", "continue") + " %}" + self.open("endif")

    def macro_body(self, depth):
        size, scope, loops = len(self.scope), self.scope, self.loops
        self.scope, self.loops = [("a", "str"), ("b", "str")], 0
        out = self.body(depth)
        self.scope, self.loops = scope, loops
        del self.scope[size:]
        return out

    def st_macro(self, depth):
        name = self.pick("m", "m2")
        out = self.open(f"macro {name}(a, b={self.pick(self.literal(), 'a', 's')})") + self.text() + self.macro_body(depth) + self.open("endmacro")
        arguments = lambda: self.pick(self.expr("str", 2), f"{self.expr('str', 1)}, {self.expr('str', 1)}", f"b={self.expr('str', 1)}, a={self.expr('str', 1)}", f"{self.expr('str', 1)}, b={self.expr('str', 1)}", "*['p', s]",
                                      "**{'a': s}", "s, **{'b': mixed}", "s, z=1" if self.rng.random() < 0.03 else "s")
        return out + "".join(self.pick("{{ %s(%s) }}", "{{ %s(%s)|upper }}", "{{- %s(%s).strip() ~ s -}}", "{{ [%s(%s)]|tojson }}") % (name, arguments()) for _ in range(2))

    def st_special(self, depth):
        return ("{% macro v(a) %}{{ a }}" + self.pick("{{ varargs }}{{ kwargs }}", "{{ varargs|join('+') }}{{ kwargs|tojson }}", "{{ kwargs.items()|list }}{{ varargs[0] }}", "{{ caller is defined }}") + self.body(depth, 1) + "{% endmacro %}"
                + "{{ v(%s) }}" % self.pick("1", "1, 2, s", "s, q=pad", "1, 2, z=s", "*words, **{'k': s}", "*ints"))

    def st_call(self, depth):
        out = "{% macro w(a) %}<{{ " + self.pick("caller()", "caller(a)", "caller(a) ~ caller('z')", "caller()|upper") + " }}>" + self.pick("", "{{ loop is defined }}") + "{% endmacro %}"
        size, loops = len(self.scope), self.loops
        self.loops = 0
        parameters = "" if "caller()" in out and self.rng.random() < 0.9 else self.pick("(x)", "(x='d')", "(x, y=1)")
        self.scope += [("x", "str")] if parameters else []
        out += self.open(f"call{parameters} w({self.expr('str', 1)})") + self.text() + self.body(depth) + self.open("endcall")
        self.loops = loops
        del self.scope[size:]
        return out

    def st_recursive(self, depth):
        size = len(self.scope)
        self.scope += [("b", "dict")]
        self.loops += 1
        out = "{% for b in tree" + self.pick("", " if b.v != '3'") + " recursive %}{{ b.v }}{{ loop.depth }}" + self.loop_output() + self.body(depth, 1)
        out += self.pick("{{ loop(b.kids) }}", "{{ loop(b.kids)|upper }}", "{% if b.kids %}({{- loop(b.kids) -}}){% endif %}", "[{{ loop(b['kids']|reverse) }}]") + self.pick("", "{% else %}e") + "{% endfor %}"
        self.loops -= 1
        del self.scope[size:]
        return out

    def st_closure(self, depth):
        return "{% for c in words %}{% macro inner(a) %}{{ a }}{{ c }}{{ loop.index }}" + self.pick("", "{{ x }}") + "{% endmacro %}{% set x = " + self.expr("str", 1) + " %}{{ inner(c) }}" + self.body(depth, 1) + "{% endfor %}"

    def st_with(self, depth):
        size = len(self.scope)
        out = self.open(f"with {self.pick('x = ' + self.expr('str', 2), 'x = s, y = ' + self.expr('any', 2), '(x, y) = nested[0]')}")
        self.scope.append(("x", "str"))
        out += self.body(depth) + self.open("endwith")
        del self.scope[size:]
        return out

    def st_filter(self, depth):
        return self.open(f"filter {self.pick('upper', 'trim', 'indent(2)', 'replace(' + self.literal() + ', s)', 'lower|title', 'e', 'tojson')}") + self.text() + self.body(depth) + self.open("endfilter")

    def st_namespace(self, depth):
        out = self.open(f"set ns = namespace(v={self.expr('str', 1)}, i=0)")
        self.scope += [("ns.v", "str"), ("ns.i", "int")]
        return out + "{% for z in ints %}{% set ns.v = " + self.expr("str", 1) + " ~ ns.v[:40] %}{% set ns.i = ns.i + 1 %}" + self.body(depth, 1) + "{% endfor %}{{ ns.v }}{{ ns.i }}"

    def st_generation(self, depth):
        loops, self.loops = self.loops, 0
        out = self.open("generation") + self.body(depth) + self.open("endgeneration")
        self.loops = loops
        return out

    def st_joiner(self, depth):
        return "{% set sep = joiner(" + self.pick("", self.literal()) + ") %}{% for w in words %}{{ sep() }}{{ w }}{% endfor %}"


def make_template(rng):
    grammar = Grammar(rng)
    return grammar.text() + grammar.body(rng.choice([0, 1, 2, 3]), rng.randint(1, 3))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    env = environment()
    env.cache = None
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        lines = pathlib.Path(folder) / "cases.jsonl"
        with lines.open("w", encoding="utf-8") as out:
            for _ in range(args.count):
                source = make_template(rng)
                try:
                    env.compile(source)
                except SyntaxError:  # Python's own limit of nested blocks
                    continue
                except Exception:
                    pass
                out.write(json.dumps({"source": source, "variables": VARIABLES, **attempt(env, source, VARIABLES)}) + "\n")
        result = subprocess.run([args.binary, "--gtest_filter=ChatTemplateFuzz.*", "--gtest_brief=1"], capture_output=True, text=True,
                                env={**os.environ, "MOECTL_TEMPLATE_FUZZ": str(lines)})
    print(result.stdout[-20000:] + result.stderr[-2000:])
    if result.returncode < 0:
        print(f"the test died of signal {-result.returncode}")
    sys.exit(0 if result.returncode == 0 and "compared" in result.stdout else "our interpreter differs from jinja2")


if __name__ == "__main__":
    main()
