# What the bindings use of csrc/: see the headers for meaning.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp cimport bool as cbool


cdef extern from "pl.h" nogil:
    enum:
        PL_OK
        PL_EAGAIN
        PL_ENOENT
        PL_EIO
        PL_EFORMAT
        PL_ENOMEM
    ctypedef struct pl_addr:
        uint8_t family
        uint16_t port
        uint8_t ip[16]
    uint64_t PL_NEVER


cdef extern from "wire.h" nogil:
    ctypedef struct pl_packet:
        uint8_t flags, proto
        uint16_t src_net, dst_net
        uint32_t src_node, dst_node
        uint16_t src_port, dst_port
        uint32_t seq, ack
        uint16_t window
        uint32_t crc
        const uint8_t *payload
        uint16_t len
    ctypedef struct pl_pils:
        uint32_t node, prefix
        uint64_t counter
        const uint8_t *nonce
        const uint8_t *body
        size_t body_len
    ctypedef struct pl_sack_block:
        uint32_t left, right
    ctypedef struct pl_beacon_msg:
        uint8_t type, kind
        uint32_t node, target
        pl_addr endpoint
        uint16_t count
        const uint8_t *body
        size_t body_len
    ctypedef struct pl_synopt:
        uint8_t window_shift, max_sack
        uint16_t max_segment
        uint32_t reorder_segments, flags
    uint32_t pl_crc32(uint32_t crc, const uint8_t *p, size_t len)
    int pl_packet_parse(const uint8_t *p, const uint8_t *end, bint crc_optional, pl_packet *out)
    void pl_packet_write_header(uint8_t *out, const pl_packet *pkt)
    void pl_packet_write_crc(uint8_t *packet, size_t len)
    int pl_pils_parse(const uint8_t *p, const uint8_t *end, pl_pils *out)
    unsigned pl_sack_parse(const uint8_t *p, const uint8_t *end, unsigned max, pl_sack_block *out)
    size_t pl_sack_write(uint8_t *out, const pl_sack_block *blocks, unsigned n)
    int pl_beacon_parse(const uint8_t *p, const uint8_t *end, pl_beacon_msg *out)
    int pl_ipc_parse(const uint8_t *p, const uint8_t *end, uint8_t *cmd, const uint8_t **payload, uint32_t *len, size_t *size)
    bint pl_synopt_parse(const uint8_t *p, const uint8_t *end, pl_synopt *out)
    void pl_synopt_write(uint8_t *out, const pl_synopt *o)


cdef extern from "aead.h" nogil:
    ctypedef struct pl_aead:
        pass
    pl_aead *pl_aead_new(const uint8_t *key)
    void pl_aead_free(pl_aead *a)
    int pl_aead_seal(pl_aead *a, const uint8_t *nonce, const uint8_t *aad, size_t aad_len, uint8_t *data, size_t len)
    int pl_aead_open(pl_aead *a, const uint8_t *nonce, const uint8_t *aad, size_t aad_len, uint8_t *data, size_t len)


cdef extern from "tx.h" nogil:
    ctypedef struct pl_run:
        pl_addr to
        uint32_t off, len, seg, count
    ctypedef struct pl_tx:
        uint8_t *arena
        uint32_t used
        unsigned n_runs
        pl_run *runs
        void (*flush)(pl_tx *, void *) noexcept nogil
        void *ctx
    int pl_tx_init(pl_tx *tx, void (*flush)(pl_tx *, void *) noexcept nogil, void *ctx)
    void pl_tx_free(pl_tx *tx)
    void pl_tx_reset(pl_tx *tx)


cdef extern from "stream.h" nogil:
    ctypedef struct pl_stream:
        pass
    ctypedef struct pl_stream_cfg:
        const char *congestion
        uint32_t send_buffer, recv_buffer, recv_buffer_plain
        uint64_t keepalive_ns, idle_timeout_ns, time_wait_ns, linger_ns, syn_timer_ns, dial_timeout_ns
    ctypedef struct pl_stream_info:
        int state
        bint options
        uint32_t mss
        uint64_t cwnd, ssthresh, in_flight, pacing_rate, srtt_ns, rttvar_ns, min_rtt_ns
        uint32_t unacked_segs, ooo_segs, peer_window, local_window
        bint in_recovery
        uint64_t bytes_sent, bytes_recv, segs_sent, segs_recv, retransmits, fast_retx
        uint64_t sack_recv, sack_sent, dup_acks, timeouts


cdef extern from "cc.h" nogil:
    ctypedef struct pl_cc_ops:
        const char *name
    const pl_cc_ops *pl_cc_find(const char *name)


cdef extern from "engine.h" nogil:
    ctypedef struct pl_engine:
        pass
    ctypedef struct pl_event:
        uint32_t type, node, conn, client
        uint16_t remote_net, remote_port, local_net, local_port
        bint relayed
        pl_addr addr
        uint64_t a, b
        uint32_t len
        uint8_t *data
        pl_event *next
    ctypedef struct pl_caps:
        uint32_t features
        uint16_t max_segment
        uint32_t reorder_segments
    ctypedef struct pl_engine_cfg:
        pl_stream_cfg stream
        uint32_t max_conns, max_conns_port, max_peers, syn_rate, accept_queue, max_segment, datagram_queue
        uint64_t peer_keepalive_ns
        uint8_t entropy[32]
        cbool accept_era1
    ctypedef struct pl_peer_info:
        uint32_t node
        bint trusted, session, proved, has_path, relay, own_kind
        pl_addr path
        uint32_t mss
        uint8_t era
        uint64_t key_id, last_recv_ns, last_send_ns, last_direct_recv_ns
        uint64_t bytes_sent, bytes_recv, pkts_sent, pkts_recv, open_failures
        uint32_t conns
    ctypedef struct pl_conn_info:
        uint32_t id, node
        uint16_t local_net, local_port, remote_net, remote_port
        int owner
        uint32_t client
        pl_stream_info s
    ctypedef struct pl_engine_stats:
        uint64_t bytes_sent, bytes_recv, pkts_sent, pkts_recv
        uint64_t drop_short, drop_unknown, drop_plaintext, drop_no_session, drop_auth, drop_replay, drop_packet
        uint64_t drop_source, drop_beacon_source, drop_untrusted, drop_no_conn, drop_limit, drop_event
        uint64_t syn_refused, syn_rate_limited, accept_queue_drops, opened_ok, opened_fail, opened_early, opened_era1, drop_era1
        uint32_t peers, sessions, conns, ports
    enum pl_owner:
        PL_OWNER_NONE
        PL_OWNER_APP
        PL_OWNER_ECHO
        PL_OWNER_CLIENT
    void pl_engine_cfg_default(pl_engine_cfg *cfg)
    pl_engine *pl_engine_new(const pl_engine_cfg *cfg, pl_tx *tx, uint64_t now_ns)
    void pl_engine_free(pl_engine *e)
    void pl_engine_input(pl_engine *e, uint8_t *data, size_t len, size_t seg, const pl_addr *frm, uint64_t now_ns)
    void pl_engine_flush(pl_engine *e, uint64_t now_ns)
    uint64_t pl_engine_deadline(const pl_engine *e)
    pl_event *pl_engine_event(pl_engine *e)
    void pl_event_free(pl_event *ev)
    void pl_engine_set_node(pl_engine *e, uint32_t node)
    void pl_engine_set_public(pl_engine *e, bint is_public)
    void pl_engine_set_beacons(pl_engine *e, const pl_addr *beacons, unsigned n)
    int pl_engine_set_trusted(pl_engine *e, uint32_t node, bint trusted)
    int pl_engine_install_keys(pl_engine *e, uint32_t node, const uint8_t *key, const uint8_t *era1, uint64_t key_id,
                               const pl_caps *caps, bint foretold, uint64_t now)
    int pl_engine_drop_session(pl_engine *e, uint32_t node)
    int64_t pl_engine_reset_streams(pl_engine *e, uint32_t node, uint64_t key_id, uint64_t now_ns)
    int pl_engine_forget_peer(pl_engine *e, uint32_t node, uint64_t now_ns)
    int pl_engine_set_path(pl_engine *e, uint32_t node, const pl_addr *to, bint relay, uint64_t now_ns)
    int pl_engine_probe(pl_engine *e, uint32_t node, const pl_addr *to, bint relay, uint64_t token, uint64_t now_ns)
    int pl_engine_send_raw(pl_engine *e, const pl_addr *to, const uint8_t *data, size_t len)
    int pl_engine_peer_info(const pl_engine *e, uint32_t node, pl_peer_info *out)
    bint pl_engine_next_peer(const pl_engine *e, size_t *it, uint64_t since_ns, pl_peer_info *out)
    int pl_engine_rest(pl_engine *e, uint32_t node, uint64_t until_ns, uint64_t now_ns)
    int pl_engine_listen(pl_engine *e, uint16_t port, pl_owner owner, uint32_t client, bint open_port)
    int pl_engine_unlisten(pl_engine *e, uint16_t port)
    int64_t pl_engine_dial(pl_engine *e, uint16_t local_net, uint16_t remote_net, uint32_t node, uint16_t port,
                           uint32_t client, uint64_t timeout_ns, uint64_t now_ns)
    int pl_engine_own(pl_engine *e, uint32_t conn, pl_owner owner, uint32_t client, uint64_t now_ns)
    int64_t pl_engine_write(pl_engine *e, uint32_t conn, const uint8_t *data, size_t len, uint64_t now_ns)
    int64_t pl_engine_read(pl_engine *e, uint32_t conn, uint8_t *buf, size_t cap, uint64_t now_ns)
    int pl_engine_close(pl_engine *e, uint32_t conn, uint64_t now_ns)
    int pl_engine_abort(pl_engine *e, uint32_t conn, uint64_t now_ns)
    int64_t pl_engine_unacked(const pl_engine *e, uint32_t conn)
    int pl_engine_conn_info(const pl_engine *e, uint32_t conn, pl_conn_info *out)
    bint pl_engine_next_conn(const pl_engine *e, size_t *it, pl_conn_info *out)
    int pl_engine_send_datagram(pl_engine *e, uint16_t local_net, uint16_t src_port, uint16_t remote_net, uint32_t node,
                                uint16_t port, const uint8_t *data, size_t len, uint64_t now_ns)
    void pl_engine_get_stats(const pl_engine *e, pl_engine_stats *out)


cdef extern from "loop.h" nogil:
    ctypedef struct pl_loop:
        pass
    ctypedef struct pl_loop_cfg:
        pl_engine_cfg engine
        pl_addr bind
        int local_listen_fd
        uint32_t max_clients, socket_buffer, spin_us
        cbool use_gso, use_gro
    ctypedef struct pl_loop_stats:
        uint64_t recv_calls, recv_datagrams, send_calls, send_datagrams, send_errors, gso_fallbacks, wakeups
        uint64_t client_frames, client_bad_frames, client_dials, client_slow
        uint64_t client_refused, client_send_drops, client_datagram_drops
        uint32_t clients
        cbool gso, gro
    void pl_loop_cfg_default(pl_loop_cfg *cfg)
    int pl_loop_new(const pl_loop_cfg *cfg, pl_loop **out)
    int pl_loop_start(pl_loop *l)
    int pl_loop_serve(pl_loop *l, int listen_fd)
    void pl_loop_stop(pl_loop *l)
    void pl_loop_free(pl_loop *l)
    pl_engine *pl_loop_lock(pl_loop *l, uint64_t *now_ns)
    void pl_loop_unlock(pl_loop *l)
    int pl_loop_event_fd(const pl_loop *l)
    void pl_loop_local_addr(const pl_loop *l, pl_addr *out)
    int pl_loop_client_send(pl_loop *l, uint32_t client, uint8_t cmd, const uint8_t *payload, uint32_t len)
    int pl_loop_client_close(pl_loop *l, uint32_t client)
    int pl_loop_attach(pl_loop *l, uint32_t conn, uint32_t client)
    int pl_loop_serve_streams(pl_loop *l, int32_t net)
    int pl_loop_dial_answered(pl_loop *l, uint32_t client)
    void pl_loop_get_stats(pl_loop *l, pl_loop_stats *out)


cdef extern from "udp.h" nogil:
    ctypedef struct pl_iovec "struct iovec":
        uint8_t *iov_base
        size_t iov_len
    ctypedef struct pl_rx:
        uint8_t *data
        uint32_t len, seg
        pl_addr from_ "from"
        pl_addr local
    ctypedef struct pl_udp_msg:
        pl_addr to
        pl_iovec *iov
        unsigned n_iov
        uint32_t seg


cdef extern from "relay.h" nogil:
    enum: PL_RELAY_BATCH
    ctypedef struct pl_relay:
        pass
    ctypedef struct pl_relay_cfg:
        uint32_t max_nodes, max_nodes_per_ip, punch_rate, probe_rate, pace_rate
        uint64_t node_ttl_ns, claim_ttl_ns, relay_bytes_per_s, hash_seed
    ctypedef struct pl_relay_stats:
        uint64_t discovers, punches, introduced, probes, relayed, relayed_bytes, forwarded, not_found, spoofed, limited, bad, sync, forged, unsealed, handed, hand_full
        uint32_t nodes, routes, attached
    ctypedef struct pl_relay_loop:
        pass
    void pl_relay_cfg_default(pl_relay_cfg *cfg)
    pl_relay *pl_relay_new(const pl_relay_cfg *cfg, uint64_t now_ns)
    void pl_relay_free(pl_relay *r)
    void pl_relay_input(pl_relay *r, pl_rx *batch, unsigned n, uint64_t now_ns)
    unsigned pl_relay_sends(pl_relay *r, const pl_udp_msg **out)
    void pl_relay_expire(pl_relay *r, uint64_t now_ns)
    enum pl_relay_socket:
        PL_SOCK_MAIN
    ctypedef struct pl_relay_reply:
        pl_relay_socket socket
        pl_addr to
        uint8_t *data
        uint32_t len
    void pl_relay_set_probe(pl_relay *r, uint16_t observer_port, const pl_addr *alt)
    void pl_relay_observe(pl_relay *r, pl_relay_socket at, const pl_rx *batch, unsigned n, uint64_t now_ns)
    unsigned pl_relay_replies(const pl_relay *r, const pl_relay_reply **out)
    bint pl_relay_take_news(pl_relay *r)
    void pl_relay_stream_addr(pl_addr *out, uint32_t node)
    size_t pl_relay_take(pl_relay *r, const uint8_t **out)
    void pl_relay_set_peers(pl_relay *r, const pl_addr *peers, unsigned n)
    size_t pl_relay_nodes(const pl_relay *r, uint32_t *out, uint8_t *ages, size_t cap)
    bint pl_relay_lookup(const pl_relay *r, uint32_t node, pl_addr *out)
    int pl_relay_vouch(pl_relay *r, uint32_t node, const pl_addr *addr, uint64_t now_ns)
    int pl_relay_attach(pl_relay *r, uint32_t node, uint64_t now_ns)
    void pl_relay_detach(pl_relay *r, uint32_t node)
    void pl_relay_get_stats(const pl_relay *r, pl_relay_stats *out)
    ctypedef struct pl_relay_probe_cfg:
        pl_addr alt
        uint16_t observer_port, quiet_port
    int pl_relay_loop_new(const pl_relay_cfg *cfg, const pl_addr *bind, const pl_relay_probe_cfg *probe, uint32_t socket_buffer,
                          pl_relay_loop **out)
    int pl_relay_loop_start(pl_relay_loop *l)
    void pl_relay_loop_stop(pl_relay_loop *l)
    void pl_relay_loop_free(pl_relay_loop *l)
    pl_relay *pl_relay_loop_lock(pl_relay_loop *l, uint64_t *now_ns)
    void pl_relay_loop_unlock(pl_relay_loop *l)
    void pl_relay_loop_local_addr(const pl_relay_loop *l, pl_addr *out)
    int pl_relay_loop_send(pl_relay_loop *l, const pl_addr *to, const uint8_t *data, size_t len)
    int pl_relay_loop_send_peer(pl_relay_loop *l, const pl_addr *to, const uint8_t *data, size_t len)
    enum: PL_RELAY_LETTERS, PL_RELAY_LETTER_SIZE, PL_RELAY_SECRET
    ctypedef struct pl_relay_letter:
        pl_addr frm "from"
        uint8_t data[54]
        uint32_t len
    unsigned pl_relay_loop_take_letters(pl_relay_loop *l, pl_relay_letter *out)
    int pl_relay_set_secret(pl_relay *r, const uint8_t *key)
    int pl_relay_set_seal_key(pl_relay *r, const pl_addr *peer, uint32_t session, const uint8_t *key)
    int pl_relay_add_open_key(pl_relay *r, const pl_addr *peer, uint32_t session, const uint8_t *key)
    int pl_relay_loop_send_node(pl_relay_loop *l, uint32_t node, const uint8_t *data, size_t len)
    void pl_relay_loop_inject(pl_relay_loop *l, uint32_t node, pl_rx *batch, unsigned n)
    int pl_relay_loop_news_fd(const pl_relay_loop *l)
    int pl_relay_loop_hand_fd(const pl_relay_loop *l)
    size_t pl_relay_loop_take(pl_relay_loop *l, const uint8_t **out)
    ctypedef struct pl_relay_loop_stats:
        uint64_t wakeups, recv_calls, recv_datagrams, send_calls, send_datagrams, send_errors, gso_fallbacks
        cbool gso, gro
    void pl_relay_loop_get_stats(const pl_relay_loop *l, pl_relay_loop_stats *out)


