"""Questions to PostgreSQL's catalogue: what is defined on the ledger's tables, and how the server is set up.

Definitions are spelled from catalogue columns rather than from `pg_get_...def` wherever that is possible, so that they
stay the same under the next major version of the server.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection

from appliance.ledger.dialect import Finding

_OURS = "c.relnamespace = 'public'::regnamespace"

TABLES = f"SELECT c.relname::text FROM pg_class c WHERE {_OURS} AND c.relkind = 'r'"  # noqa: S608 (our own text)

OWN_INDEXES = f"""
SELECT c.oid::regclass::text FROM pg_class c JOIN pg_am a ON a.oid = c.relam
WHERE {_OURS} AND c.relkind = 'i' AND a.amname = 'btree' ORDER BY 1
"""  # noqa: S608

_TABLES = f"""
SELECT 'table', c.relname::text, c.relname::text,
  concat_ws(' ', c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity) || E'\\n' || coalesce((
    SELECT string_agg(concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
      a.attgenerated, pg_get_expr(d.adbin, d.adrelid), l.collname), E'\\n' ORDER BY a.attnum)
    FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
      LEFT JOIN pg_collation l ON l.oid = a.attcollation
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '')
FROM pg_class c WHERE {_OURS} AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""  # noqa: S608

_CONSTRAINTS = f"""
SELECT 'constraint', k.conname::text, c.relname::text,
  concat_ws(' ', k.contype, k.convalidated, k.condeferrable, k.condeferred, pg_get_constraintdef(k.oid))
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid WHERE {_OURS} AND k.contype <> 'n'
"""  # noqa: S608

_INDEXES = f"""
SELECT 'index', i.relname::text, c.relname::text,
  concat_ws(' ', x.indisvalid, x.indisready, x.indisunique, pg_get_indexdef(x.indexrelid))
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid WHERE {_OURS}
"""  # noqa: S608

# A constraint's own triggers have a number in their name; they are known by the constraint and what they call.
_TRIGGERS = f"""
SELECT CASE WHEN t.tgisinternal THEN 'constraint trigger' ELSE 'trigger' END,
  CASE WHEN t.tgisinternal THEN k.conname || ' ' || p.proname ELSE t.tgname END::text, c.relname::text,
  concat_ws(' ', t.tgenabled, t.tgtype, p.pronamespace::regnamespace, p.proname, t.tgdeferrable, t.tginitdeferred,
    t.tgattr, t.tgqual, encode(t.tgargs, 'hex'))
FROM pg_trigger t JOIN pg_class o ON o.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid
  LEFT JOIN pg_constraint k ON k.oid = t.tgconstraint
  JOIN pg_class c ON c.oid = CASE WHEN t.tgisinternal THEN k.conrelid ELSE o.oid END
WHERE {_OURS}
"""  # noqa: S608

_FUNCTIONS = f"""
SELECT DISTINCT 'function', p.proname::text, c.relname::text,
  concat_ws(' ', p.pronamespace::regnamespace, l.lanname, p.prosecdef, p.provolatile, p.proconfig, p.prosrc)
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid
  JOIN pg_language l ON l.oid = p.prolang
WHERE {_OURS} AND NOT t.tgisinternal
"""  # noqa: S608

_RULES = f"""
SELECT 'rule', r.rulename::text, c.relname::text, concat_ws(' ', r.ev_enabled, pg_get_ruledef(r.oid))
FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class WHERE {_OURS} AND c.relkind <> 'v'
"""  # noqa: S608

_POLICIES = f"""
SELECT 'policy', p.polname::text, c.relname::text, concat_ws(' ', p.polcmd, p.polpermissive)
FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid WHERE {_OURS}
"""  # noqa: S608

_CHILDREN = f"""
SELECT 'inheritance', c.relname || ' ' || o.relname, c.relname::text, ''
FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhparent JOIN pg_class o ON o.oid = h.inhrelid
WHERE {_OURS} AND c.relkind = 'r'
UNION ALL
SELECT 'inheritance', c.relname || ' of ' || o.relname, c.relname::text, ''
FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid JOIN pg_class o ON o.oid = h.inhparent
WHERE {_OURS} AND c.relkind = 'r'
"""  # noqa: S608

# Who may do what, the owner aside, whose name belongs to it: who owns a table can drop its guards.
_GRANTS = f"""
SELECT 'grants of', c.relname::text, c.relname::text, pg_get_userbyid(c.relowner) || coalesce((
  SELECT string_agg(E'\\n' || concat_ws(' ', CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(g.grantee) END,
      g.privilege_type, g.is_grantable, g.attname), '' ORDER BY pg_get_userbyid(g.grantee), g.privilege_type, g.attname)
  FROM (
    SELECT x.grantee, x.privilege_type, x.is_grantable, NULL::name AS attname FROM aclexplode(c.relacl) x
    UNION ALL
    SELECT x.grantee, x.privilege_type, x.is_grantable, a.attname FROM pg_attribute a, aclexplode(a.attacl) x
    WHERE a.attrelid = c.oid AND NOT a.attisdropped
  ) g WHERE g.grantee <> c.relowner), '')
FROM pg_class c WHERE {_OURS} AND c.relkind = 'r'
"""  # noqa: S608

DEFINITIONS = (
    _TABLES,
    _CONSTRAINTS,
    _INDEXES,
    _TRIGGERS,
    _FUNCTIONS,
    _RULES,
    _POLICIES,
    _CHILDREN,
    _GRANTS,
)

_AMCHECK = """
SELECT coalesce(has_function_privilege(to_regprocedure('bt_index_check(regclass, boolean)'), 'EXECUTE'), false)
"""

_ROLE = """
SELECT r.rolsuper, coalesce(pg_has_role(current_user, c.relowner, 'MEMBER'), false), r.rolname::text
FROM pg_roles r LEFT JOIN pg_class c ON c.relname = 'entry' AND c.relnamespace = 'public'::regnamespace
WHERE r.rolname = current_user
"""


def amcheck_usable(connection: Connection) -> bool:
    """Tell whether the extension that checks indexes is installed, and this role may use it."""
    return bool(connection.exec_driver_sql(_AMCHECK).scalar())


def findings(connection: Connection) -> Iterator[Finding]:
    """Say what an administrator may want to change."""
    version = connection.exec_driver_sql("SHOW server_version").scalar_one()
    yield Finding("database", good=True, detail=f"PostgreSQL {version}")
    superuser, owner, name = connection.exec_driver_sql(_ROLE).one()
    said = "is a superuser" if superuser else "owns the tables" if owner else "uses the tables and does not own them"
    yield Finding("database role", good=not (superuser or owner), detail=f"{name} {said}")
    for setting, wanted in (("fsync", "on"), ("full_page_writes", "on"), ("data_checksums", "on")):
        found = connection.exec_driver_sql(f"SHOW {setting}").scalar_one()
        yield Finding(f"database {setting}", good=found == wanted, detail=str(found))
    usable = amcheck_usable(connection)
    detail = "usable" if usable else "not installed or not granted: `ledger verify` cannot check the indexes"
    yield Finding("database amcheck", good=usable, detail=detail)
