/*
 * Everything about the installed extension that the catalogs know, as sorted
 * text without OIDs, one line per fact: two databases on servers of one version whose
 * extension is the same give the same text, however they came by it (fresh,
 * updated, restored, upgraded).
 *
 * Needs the settings for printing to be the same for both, and
 * search_path = '', so that all names are printed in full.
 */
WITH
ns AS (
	SELECT n.* FROM pg_namespace AS n WHERE n.nspname = 'syncstate'),
ext AS (
	SELECT e.* FROM pg_extension AS e WHERE e.extname = 'syncstate'),
rel AS (
	SELECT c.*, c.oid::regclass::text AS name
	FROM pg_class AS c JOIN ns ON c.relnamespace = ns.oid),
fn AS (
	SELECT p.*, p.oid::regprocedure::text AS name
	FROM pg_proc AS p JOIN ns ON p.pronamespace = ns.oid),
ty AS (
	SELECT t.*, t.oid::regtype::text AS name
	FROM pg_type AS t JOIN ns ON t.typnamespace = ns.oid),

-- what may have a comment, a label or initial privileges
object (classid, objid) AS (
	SELECT 'pg_namespace'::regclass, oid FROM ns
	UNION ALL SELECT 'pg_extension'::regclass, oid FROM ext
	UNION ALL SELECT 'pg_class'::regclass, oid FROM rel
	UNION ALL SELECT 'pg_proc'::regclass, oid FROM fn
	UNION ALL SELECT 'pg_type'::regclass, oid FROM ty
	UNION ALL SELECT 'pg_constraint'::regclass, c.oid FROM pg_constraint AS c JOIN ns ON c.connamespace = ns.oid
	UNION ALL SELECT 'pg_policy'::regclass, p.oid FROM pg_policy AS p JOIN rel ON p.polrelid = rel.oid
	UNION ALL SELECT 'pg_trigger'::regclass, t.oid FROM pg_trigger AS t JOIN rel ON t.tgrelid = rel.oid
	UNION ALL SELECT 'pg_rewrite'::regclass, r.oid FROM pg_rewrite AS r JOIN rel ON r.ev_class = rel.oid
	UNION ALL SELECT d.classid, d.objid FROM pg_depend AS d JOIN ext ON d.refobjid = ext.oid
		WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'),

-- the privileges of all kinds
privileges AS (
	SELECT 'schema' AS kind, nspname::text AS name, COALESCE(nspacl, acldefault('n', nspowner)) AS acl FROM ns
	UNION ALL SELECT 'relation', name, COALESCE(relacl, acldefault(CASE relkind WHEN 'S' THEN 's'::"char" ELSE 'r' END, relowner)) FROM rel
		WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
	UNION ALL SELECT 'column', rel.name || '.' || quote_ident(a.attname), a.attacl
		FROM rel JOIN pg_attribute AS a ON a.attrelid = rel.oid
	UNION ALL SELECT 'function', name, COALESCE(proacl, acldefault('f', proowner)) FROM fn
	UNION ALL SELECT 'type', name, COALESCE(typacl, acldefault('T', typowner)) FROM ty
	UNION ALL SELECT format('new %s', d.defaclobjtype), d.defaclrole::regrole::text, d.defaclacl
		FROM pg_default_acl AS d JOIN ns ON d.defaclnamespace = ns.oid),

lines (line) AS (
	-- the extension and what belongs to it
	SELECT format('extension %s version %s schema %s relocatable %s owner %s', extname, extversion,
		extnamespace::regnamespace, extrelocatable, extowner::regrole) FROM ext
	UNION ALL
	SELECT format('dumped %s where %s', c.oid::regclass, c.condition)
	FROM ext, unnest(ext.extconfig, ext.extcondition) AS c (oid, condition)
	UNION ALL
	SELECT 'member ' || pg_describe_object(d.classid, d.objid, d.objsubid)
	FROM pg_depend AS d JOIN ext ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = ext.oid
	WHERE d.deptype = 'e'
	UNION ALL
	SELECT format('schema %s owner %s', nspname, nspowner::regrole) FROM ns

	-- relations
	UNION ALL
	SELECT format('relation %s kind %s persistence %s owner %s row security %s forced %s identity %s options %s method %s tablespace %s',
		name, relkind, relpersistence, relowner::regrole, relrowsecurity, relforcerowsecurity, relreplident,
		(SELECT string_agg(o, ' ' ORDER BY o) FROM unnest(reloptions) AS o),
		(SELECT amname FROM pg_am AS am WHERE am.oid = relam), reltablespace)
	FROM rel
	UNION ALL
	SELECT format('column %s.%s %s at %s %s%s collation %s storage %s compression %s identity %s generated %s default %s statistics %s options %s',
		rel.name, a.attname, format_type(a.atttypid, a.atttypmod), row_number() OVER (PARTITION BY rel.oid ORDER BY a.attnum),
		rel.relkind, CASE WHEN a.attnotnull THEN ' not null' END, NULLIF(a.attcollation, 0)::regcollation,
		a.attstorage, a.attcompression, a.attidentity, a.attgenerated,
		pg_get_expr(d.adbin, d.adrelid), NULLIF(a.attstattarget, -1),
		-- without what newer minor versions of the server count in there
		(SELECT string_agg(o, ' ' ORDER BY o) FROM unnest(a.attoptions) AS o WHERE o NOT LIKE 'pg_attver=%'))
	FROM rel JOIN pg_attribute AS a ON a.attrelid = rel.oid AND a.attnum > 0 AND NOT a.attisdropped
		LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
	UNION ALL
	SELECT format('index %s unique %s valid %s clustered %s identity %s', pg_get_indexdef(i.indexrelid),
		i.indisunique, i.indisvalid, i.indisclustered, i.indisreplident)
	FROM rel JOIN pg_index AS i ON i.indrelid = rel.oid
	UNION ALL
	SELECT format('view %s %s', name, pg_get_viewdef(oid)) FROM rel WHERE relkind IN ('v', 'm')
	UNION ALL
	SELECT format('rule %s %s enabled %s', r.rulename, pg_get_ruledef(r.oid), r.ev_enabled)
	FROM rel JOIN pg_rewrite AS r ON r.ev_class = rel.oid
	UNION ALL
	SELECT format('statistics %s', pg_get_statisticsobjdef(s.oid))
	FROM rel JOIN pg_statistic_ext AS s ON s.stxrelid = rel.oid
	UNION ALL
	SELECT format('constraint %s on %s%s %s validated %s deferrable %s %s', c.conname,
		NULLIF(c.conrelid, 0)::regclass, NULLIF(c.contypid, 0)::regtype, pg_get_constraintdef(c.oid),
		c.convalidated, c.condeferrable, c.condeferred)
	FROM pg_constraint AS c JOIN ns ON c.connamespace = ns.oid
	UNION ALL
	SELECT format('policy %s on %s for %s permissive %s to %s using %s with check %s', p.polname, rel.name,
		p.polcmd, p.polpermissive, (SELECT string_agg(CASE r WHEN 0 THEN 'public' ELSE r::regrole::text END, ' ' ORDER BY r) FROM unnest(p.polroles) AS r),
		pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
	FROM rel JOIN pg_policy AS p ON p.polrelid = rel.oid
	UNION ALL
	SELECT format('trigger %s enabled %s internal %s', pg_get_triggerdef(t.oid), t.tgenabled, t.tgisinternal)
	FROM rel JOIN pg_trigger AS t ON t.tgrelid = rel.oid

	-- functions and types
	UNION ALL
	SELECT format('function %s owner %s kind %s cost %s rows %s support %s %s', name, proowner::regrole, prokind, procost, prorows,
		prosupport, CASE WHEN prokind IN ('f', 'p', 'w') THEN pg_get_functiondef(oid) END)
	FROM fn
	UNION ALL
	SELECT format('type %s owner %s kind %s category %s default %s not null %s', name, typowner::regrole, typtype, typcategory, typdefault, typnotnull)
	FROM ty
	UNION ALL
	SELECT format('label %s of %s at %s', e.enumlabel, ty.name,
		row_number() OVER (PARTITION BY ty.oid ORDER BY e.enumsortorder))
	FROM ty JOIN pg_enum AS e ON e.enumtypid = ty.oid

	-- comments, security labels and privileges
	UNION ALL
	SELECT format('comment on %s is %s', pg_describe_object(d.classoid, d.objoid, d.objsubid), d.description)
	FROM pg_description AS d
	WHERE (d.classoid, d.objoid) IN (SELECT classid, objid FROM object)
	UNION ALL
	SELECT format('security label of %s on %s is %s', l.provider, pg_describe_object(l.classoid, l.objoid, l.objsubid), l.label)
	FROM pg_seclabel AS l
	WHERE (l.classoid, l.objoid) IN (SELECT classid, objid FROM object)
	UNION ALL
	SELECT format('privilege on %s %s to %s by %s %s%s', kind, name,
		CASE x.grantee WHEN 0 THEN 'public' ELSE x.grantee::regrole::text END, x.grantor::regrole,
		x.privilege_type, CASE WHEN x.is_grantable THEN ' with grant option' END)
	FROM privileges, aclexplode(acl) AS x
	UNION ALL
	-- what pg_dump compares privileges with
	SELECT format('initial privilege on %s to %s by %s %s%s', pg_describe_object(i.classoid, i.objoid, i.objsubid),
		CASE x.grantee WHEN 0 THEN 'public' ELSE x.grantee::regrole::text END, x.grantor::regrole,
		x.privilege_type, CASE WHEN x.is_grantable THEN ' with grant option' END)
	FROM pg_init_privs AS i, aclexplode(i.initprivs) AS x
	WHERE i.privtype = 'e' AND (i.classoid, i.objoid) IN (SELECT classid, objid FROM object)
)
SELECT replace(line, E'\n', '\n') FROM lines ORDER BY line COLLATE "C";
