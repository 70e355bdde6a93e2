-- The lab's schema: run once on each primary, in database pghc, by its superuser pghc_admin. The roles pghc_admin, pghc
-- and replicator exist already. The chain is what readers look at; everything else is bookkeeping in schema pghc.

create table public.chain (
    zk_id   bigint primary key check (zk_id > 0),
    -- Begins with a letter, 31 characters at most: the part of the rule that keeps zk_id and node_id apart when joined.
    -- The verifier checks all of it; the full pattern as a constraint halves the rate of a bulk load.
    node_id text not null check (node_id >= 'a' and node_id < '{' and length(node_id) <= 31),
    hash    text not null
);

create schema pghc;

-- Which request became which entry, and at which position of the log: what makes a retry find its first attempt.
-- "seen" is this region's own clock when the entry became known here; it is not replicated to other primaries.
create table pghc.request (
    request_id uuid primary key,
    zk_id      bigint not null,
    position   bigint not null,
    seen       timestamptz not null default clock_timestamp()
);

-- Entries that arrived before one with a smaller number: they wait here for the gap to be filled.
create table pghc.early (zk_id bigint primary key, position bigint not null);

-- How far this region has come: every log position up to "position" is settled here, and the chain, which began at log
-- position "chain", holds every entry up to "zk_id", whose hash is "hash". So it is also the contiguous watermark of
-- readers. Its row is the region's one lock: who changes the chain holds it. What stands in this primary's write-ahead
-- log before "began" is of older chains: whoever reads that log begins there, however it came by its slot.
create table pghc.cursor (
    single   boolean primary key default true check (single),
    position bigint not null,
    zk_id    bigint not null,
    hash     text not null,
    chain    bigint not null,
    began    pg_lsn
) with (fillfactor = 20);  -- rewritten with every entry: room for updates on the same page
insert into pghc.cursor (position, zk_id, hash, chain) values (0, 0, '', 0);

-- Go over the entries that came before their turn and whose turn it is now, keep the cursor, and tell those who wait.
-- The caller holds the cursor's row, whose content is c.
create function pghc.move(c pghc.cursor) returns void language plpgsql set search_path = '' as $$
declare
    p bigint;
begin
    loop
        delete from pghc.early e where e.zk_id = c.zk_id + 1 returning e.position into p;
        exit when not found;
        c.zk_id := c.zk_id + 1; c.position := p;
        select e.hash into c.hash from public.chain e where e.zk_id = c.zk_id;
    end loop;
    update pghc.cursor set position = c.position, zk_id = c.zk_id, hash = c.hash;
    perform pg_notify('pghc', '');
end $$;

-- Entry n, of log position p and with hash h, is here. Entries arrive from two or more regions, so n + 1 may come before
-- n. Positions between two entries are void: whoever wrote the second had settled them. The caller holds the cursor.
create function pghc.advance(c pghc.cursor, n bigint, h text, p bigint) returns void
language plpgsql set search_path = '' as $$
begin
    if n > c.zk_id + 1 then
        insert into pghc.early values (n, p) on conflict do nothing;
    elsif n = c.zk_id + 1 then
        c.zk_id := n; c.position := p; c.hash := h;
        perform pghc.move(c);
    end if;
end $$;

-- The guard. Fires where rows arrive by replication (enable replica), not for a local COPY, which would pay its price a
-- row. The same row twice is one row: two nodes that complete the same log entry write the same. A different row in
-- the same place goes on to the primary key, which refuses it.
create function pghc.guard_chain() returns trigger language plpgsql set search_path = '' as $$
begin
    perform 1 from pghc.cursor for update;  -- wait for a local writer that is about to commit this very row
    if exists (select from public.chain c where c.zk_id = new.zk_id and c.node_id = new.node_id and c.hash = new.hash) then
        return null;
    end if;
    return new;
end $$;
create trigger guard before insert on public.chain for each row execute function pghc.guard_chain();
alter table public.chain enable replica trigger guard;

create function pghc.guard_request() returns trigger language plpgsql set search_path = '' as $$
begin
    perform 1 from pghc.cursor for update;
    if exists (select from pghc.request r
               where r.request_id = new.request_id and r.zk_id = new.zk_id and r.position = new.position) then
        return null;
    end if;
    return new;
end $$;
create trigger guard before insert on pghc.request for each row execute function pghc.guard_request();
alter table pghc.request enable replica trigger guard;

create function pghc.arrived() returns trigger language plpgsql set search_path = '' as $$
declare
    c pghc.cursor;
begin
    select * into c from pghc.cursor for update;
    perform pghc.advance(c, new.zk_id, (select e.hash from public.chain e where e.zk_id = new.zk_id), new.position);
    return null;
end $$;
create trigger arrived after insert on pghc.request for each row execute function pghc.arrived();
alter table pghc.request enable replica trigger arrived;

-- Insert one entry as it is into the chain that began at log position "began"; false: that one has ended. The entry's
-- log position is its number, counted from there. For writers that do not read the log.
create function pghc.insert(n bigint, node text, h text, request uuid, began bigint) returns boolean
language plpgsql set search_path = '' as $$
declare
    c pghc.cursor;
begin
    select * into c from pghc.cursor for update;
    if c.chain <> began then
        return false;
    end if;
    insert into public.chain values (n, node, h);
    insert into pghc.request (request_id, zk_id, position) values (request, n, began + n);
    perform pghc.advance(c, n, h, began + n);
    return true;
end $$;

-- Settle the log from where the cursor was, (began, p0, n0), to where these rows lead, (p, n, h): compare-and-set on
-- the cursor. False: somebody else has moved it, and nothing happens. Rows that came early by replication are the same.
create function pghc.apply(began bigint, p0 bigint, n0 bigint, p bigint, n bigint, h text,
                           zk_ids bigint[], node_ids text[], hashes text[], requests uuid[], positions bigint[])
returns boolean language plpgsql set search_path = '' as $$
declare
    c pghc.cursor;
    early bigint[];
begin
    select * into c from pghc.cursor for update;
    if (c.chain, c.position, c.zk_id) <> (began, p0, n0) then
        return false;
    end if;
    with turn as (delete from pghc.early e where e.zk_id <= n returning e.zk_id)
    select array_agg(turn.zk_id) into early from turn;
    if early is not null and exists (
        select from unnest(zk_ids, node_ids, hashes) u (zk_id, node_id, hash) join public.chain e using (zk_id)
        where e.zk_id = any(early) and (e.node_id, e.hash) <> (u.node_id, u.hash)
    ) then
        raise unique_violation using message = 'another row than the log''s stands there';
    end if;
    insert into public.chain select u.* from unnest(zk_ids, node_ids, hashes) u (zk_id, node_id, hash)
        where early is null or u.zk_id <> all(early);
    insert into pghc.request (request_id, zk_id, position)
        select u.* from unnest(requests, zk_ids, positions) u (request_id, zk_id, position)
        where early is null or u.zk_id <> all(early);
    c.position := p; c.zk_id := n; c.hash := h;
    perform pghc.move(c);
    return true;
end $$;

-- How much of this server's write-ahead log a replica has on its disk, too: the one that has most. Null: none reads it.
-- A copy that pg_basebackup is still making is no replica.
create function pghc.replicated() returns pg_lsn
language sql security definer set search_path = '' as $$
    select max(r.flush_lsn) from pg_catalog.pg_stat_replication r
    join pg_catalog.pg_replication_slots s on s.active_pid = r.pid
    where s.slot_type = 'physical' and r.application_name <> 'pg_basebackup'
$$;

-- Begin the chain of log position p, empty; returns the place in the write-ahead log before which all is of older chains.
-- A region that has that chain already stays as it is. Null: it has a later one.
create function pghc.begin(p bigint) returns pg_lsn language plpgsql set search_path = '' as $$
declare
    c pghc.cursor;
begin
    select * into c from pghc.cursor for update;
    if c.chain >= p then
        return case when c.chain = p then coalesce(c.began, '0/0') end;
    end if;
    truncate public.chain, pghc.request, pghc.early;
    update pghc.cursor set position = p, zk_id = 0, hash = '', chain = p, began = pg_current_wal_insert_lsn()
        returning began into c.began;
    perform pg_notify('pghc', '');
    return c.began;
end $$;
revoke execute on function pghc.begin from public;

-- Every offending entry of those numbered above "anchor" (0: from the first) up to "until", by recomputation in the
-- database. An entry without its predecessor offends. Frames of rows, which lag() does not look at, spare it the search
-- for peers: a third of the time.
create function pghc.anomalies(anchor bigint default 0, until bigint default 9223372036854775807)
returns table (zk_id bigint, node_id text, found text, expected text, predecessor bigint)
language sql stable parallel safe set search_path = '' as $$
    select l.zk_id, l.node_id, l.hash,
           case when coalesce(l.before, 0) = l.zk_id - 1
                then md5(l.zk_id::text || l.node_id || coalesce(l.hash_before, '')) end,
           l.before
    from (select c.zk_id, c.node_id, c.hash, lag(c.zk_id) over w as before, lag(c.hash) over w as hash_before
          from public.chain c where c.zk_id between anchor and until
          window w as (order by c.zk_id rows unbounded preceding)) l
    where (coalesce(l.before, 0) <> l.zk_id - 1
           or l.hash <> md5(l.zk_id::text || l.node_id || coalesce(l.hash_before, '')))
      and l.zk_id > anchor
    order by l.zk_id
$$;

grant usage on schema public, pghc to pghc;
grant select, insert on public.chain, pghc.request to pghc;
grant select, insert, delete on pghc.early to pghc;
grant select, update on pghc.cursor to pghc;
grant execute on function pg_replication_origin_session_setup(text), pg_replication_origin_session_reset(),
    pg_replication_origin_xact_setup(pg_lsn, timestamptz) to pghc;
-- Appliers of the log write under this origin; the mesh (origin = none) does not carry their rows a second time.
select pg_replication_origin_create('log');

create publication pghc for table public.chain, pghc.request (request_id, zk_id, position) with (publish = 'insert');
