# The end of a full sync in examples/items.sql: what it did not list goes, unless
# that is suspiciously much; and nothing goes where the lease is lost.
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION syncstate');
$node->safe_psql('postgres', slurp_file("$FindBin::RealBin/../../examples/items.sql"));
$node->safe_psql('postgres', q{
	CREATE FUNCTION u() RETURNS uuid LANGUAGE sql RETURN '00000000-0000-4000-8000-000000000001'::uuid;

	-- items by their numbers
	CREATE FUNCTION listed(numbers int[]) RETURNS jsonb LANGUAGE sql
	RETURN (SELECT coalesce(jsonb_object_agg(n, jsonb_build_object('n', n)), '{}') FROM unnest(numbers) AS n);
	CREATE FUNCTION numbers(first int, last int) RETURNS int[] LANGUAGE sql
	RETURN ARRAY(SELECT generate_series(first, last));

	-- a full sync that lists these, in pages of 50
	CREATE FUNCTION full_sync(numbers int[]) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		s syncstate.sync_state = syncstate.mark_sync_started(u(), 'google_calendar');
		page int = 0;
	BEGIN
		s = syncstate.clear_sync_token(u(), 'google_calendar', s.lease);
		LOOP
			page = page + 50;
			PERFORM save_page(u(), 'google_calendar', '', s.lease, listed(numbers[page - 49:page]), s.full_sync_id,
				least(page, cardinality(numbers)), CASE WHEN page < cardinality(numbers) THEN page::text END, sync_token => 'token');
			EXIT WHEN page >= cardinality(numbers);
		END LOOP;
	END
	$$;

	-- the same by write_items(), as the small workers do
	CREATE FUNCTION small_full_sync(numbers int[]) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		s syncstate.sync_state = syncstate.mark_sync_started(u(), 'google_calendar');
	BEGIN
		s = syncstate.clear_sync_token(u(), 'google_calendar', s.lease);
		PERFORM write_items(u(), 'google_calendar', '', s.lease, listed(numbers), true);
		PERFORM syncstate.mark_sync_completed(u(), 'google_calendar', cardinality(numbers), 'token', lease => s.lease);
	END
	$$;

	-- an incremental one
	CREATE FUNCTION incremental_sync(changes jsonb) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		s syncstate.sync_state = syncstate.mark_sync_started(u(), 'google_calendar');
	BEGIN
		PERFORM save_page(u(), 'google_calendar', '', s.lease, changes, s.full_sync_id, 1, sync_token => 'token');
	END
	$$;
	CREATE FUNCTION small_incremental_sync(changes jsonb) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		s syncstate.sync_state = syncstate.mark_sync_started(u(), 'google_calendar');
	BEGIN
		PERFORM write_items(u(), 'google_calendar', '', s.lease, changes, false);
		PERFORM syncstate.mark_sync_completed(u(), 'google_calendar', 1, 'token', lease => s.lease);
	END
	$$});

# How many items there are, and how many of them are marked.
sub items
{
	return $node->safe_psql('postgres', q{SELECT count(*) || ' items, ' || count(*) FILTER (WHERE is_missing) || ' missing' FROM items});
}

# What a sync warns of.
sub sync
{
	my ($sql) = @_;
	my ($status, undef, $err) = $node->psql('postgres', "SELECT $sql");
	$err =~ s/^psql:<stdin>:\d+: //mg;
	return $status == 0 ? $err : "failed: $err";
}

foreach my $how ('full_sync', 'small_full_sync')
{
	$node->safe_psql('postgres', 'DELETE FROM items');
	is(sync("$how(numbers(1, 200))"), '', "$how: the first one");
	is(items(), '200 items, 0 missing', 'all are there');
	is(sync("$how(numbers(1, 180))"), '', 'a tenth is gone');
	is(items(), '180 items, 0 missing', 'and deleted');
	is(sync("$how(numbers(31, 210))"), <<'EOF' =~ s/\n\z//r, 'some more come and go');
WARNING:  full sync of google_calendar did not list 30 of 210 items, which are kept
HINT:  If they are gone, SELECT confirm_sweep('00000000-0000-4000-8000-000000000001', 'google_calendar', '').
EOF
	is(items(), '210 items, 30 missing', 'what is new is there, and what is missing is kept');

	like(sync("$how('{}')"), qr/^WARNING:  full sync of google_calendar did not list 180 of 180 items, which are kept$/m, 'an empty listing is told of, without what is missing already');
	is(items(), '210 items, 210 missing', 'and deletes nothing');
	is($node->safe_psql('postgres', q{SELECT status, sync_token, full_sync_id FROM syncstate.sync_state}), 'idle|token|', 'the sync is completed all the same');
	is(sync(q{incremental_sync('{"50": {"n": 50}, "51": null}')}), '', 'an incremental one finds one of them');
	is(items(), '209 items, 208 missing', 'which is missing no more');
	is(sync("$how(numbers(31, 210))"), '', 'the listing is good again, and what was told before is not told once more');
	is(items(), '210 items, 30 missing', 'and so are the items');
	is($node->safe_psql('postgres', q{SELECT confirm_sweep(u(), 'google_tasks'), confirm_sweep(u(), 'google_calendar')}), '0|30', 'somebody confirms');
	is(items(), '180 items, 0 missing', 'and they are gone');

	# a small calendar may be emptied; and a site that says so
	is(sync("$how(numbers(31, 40))") =~ /did not list 170 of 180/ ? 't' : 'f', 't', 'many at once');
	is($node->safe_psql('postgres', q{SELECT confirm_sweep(u(), 'google_calendar')}), '170', 'confirmed');
	is(sync("$how('{}')"), '', 'ten of ten');
	is(items(), '0 items, 0 missing', 'are deleted');
	is(sync("$how(numbers(1, 200))"), '', 'two hundred again');
	$node->safe_psql('postgres', q{SELECT syncstate.set_sync_policy('google_calendar', '{"max_vanished": 1}')});
	is(sync("$how('{}')"), '', 'where max_vanished is 1');
	is(items(), '0 items, 0 missing', 'all may go');
	$node->safe_psql('postgres', q{SELECT syncstate.set_sync_policy('google_calendar', '{"max_vanished": null}')});
}

# Occurrences that were taken out of a series of events are kept as long as the
# series.
foreach my $how ('incremental_sync', 'small_incremental_sync')
{
	$node->safe_psql('postgres', 'DELETE FROM items');
	is(sync(qq{$how('{"a": {}, "a_1": {"status": "cancelled", "recurringEventId": "a"}, "b": {}, "b_1": {"recurringEventId": "b"}}')}), '', "$how: two series");
	is(sync(qq{$how('{"a": null, "a_2": {"status": "cancelled", "recurringEventId": "a"}, "c": null}')}), '', 'one is deleted');
	is($node->safe_psql('postgres', q{SELECT string_agg(id, ' ' ORDER BY id) FROM items}), 'b b_1', 'and what belongs to it');
}
$node->safe_psql('postgres', 'DELETE FROM items');

# A worker that has lost its lease writes and deletes nothing.
$node->safe_psql('postgres', 'SELECT full_sync(numbers(1, 5))');
my $lost = $node->safe_psql('postgres', q{SELECT lease FROM syncstate.mark_sync_started(u(), 'google_calendar')});
$node->safe_psql('postgres', qq{SELECT syncstate.release_sync(u(), 'google_calendar', $lost)});
my $before = $node->safe_psql('postgres', 'SELECT * FROM items ORDER BY id');
foreach my $call (
	"save_page(u(), 'google_calendar', '', $lost, listed('{9}'), $lost, 1)",
	"save_page(u(), 'google_calendar', '', $lost, listed('{9}'), NULL, 1)",
	"save_page(u(), 'google_calendar', '', $lost, listed('{9}'), $lost, 1, 'page 2')",
	"write_items(u(), 'google_calendar', '', $lost, listed('{9}'), true)")
{
	like(sync($call), qr/^failed: ERROR:  lease on sync state is no longer held/, "$call fails");
}
is($node->safe_psql('postgres', 'SELECT * FROM items ORDER BY id'), $before, 'and changes nothing');

$node->stop;
done_testing();
