/*
 * All that a database filled by states.sql holds, as text.  Needs
 * TimeZone = 'UTC'.
 */
SELECT s FROM syncstate.sync_state AS s ORDER BY user_id, source::text, resource;
SELECT p FROM syncstate.sync_policy AS p ORDER BY source::text;
SELECT b FROM syncstate.sync_budget AS b ORDER BY source::text;
SELECT e FROM syncstate.sync_event AS e ORDER BY at, id;
SELECT r FROM syncstate.sync_run AS r ORDER BY user_id, account, source::text, resource, lease;
SELECT h FROM syncstate.sync_channel AS h ORDER BY user_id, account, source::text, resource, id;
SELECT l FROM syncstate.custom_source AS l ORDER BY label;
SELECT s, syncstate.get_sync_policy(s) FROM unnest(enum_range(NULL::syncstate.sync_source)) AS s ORDER BY s::text;
SELECT id, cursor_of(s) FROM public.users JOIN syncstate.sync_state AS s ON user_id = id ORDER BY id, cursor_of(s);
SELECT pg_get_triggerdef(oid), tgenabled FROM pg_trigger WHERE tgname = 'syncstate_forget_users';
SET syncstate.clock = '2021-02-13 05:00:00+00';
SELECT * FROM public.late;
RESET syncstate.clock;
