// A js-libp2p peer for the interop tests: serves /interop/*, and does what the JSON lines on its standard input ask.
// Each request is {"id", "ask", ...arguments}, each answer {"id", "answer"} or {"id", "error"}; the first line says who and where it is.

import { createHash, randomBytes } from 'node:crypto'
import { createInterface } from 'node:readline'

import './with_resolvers.mjs'
import { createLibp2p } from 'libp2p'
import { tcp } from '@libp2p/tcp'
import { noise } from '@libp2p/noise'
import { yamux } from '@libp2p/yamux'
import { identify, identifyPush } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { gossipsub } from '@libp2p/gossipsub'
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { multiaddr } from '@multiformats/multiaddr'
import { CID } from 'multiformats/cid'
import { decode } from 'multiformats/hashes/digest'

const STREAMS = 256
const PIECE = 64 * 1024
const RAW = 0x55
const LIMITS = { maxInboundStreams: STREAMS, maxOutboundStreams: STREAMS, runOnLimitedConnection: true }

// ---- streams

// Calls take(chunk) for all that the peer sends; resolves when it has finished, rejects where the stream is reset.
function receive (stream, take) {
  return new Promise((resolve, reject) => {
    stream.addEventListener('message', ({ data }) => take(data.subarray()))
    // A reset stream says that its readable side ended, too, and says so first.
    const over = () => stream.status === 'reset' || stream.status === 'aborted' ? reject(new Error(stream.status)) : resolve()
    stream.addEventListener('close', over)
    stream.addEventListener('end', over)
    if (stream.readableEnded) over()
  })
}

async function send (stream, bytes, written = () => {}) {
  for (let at = 0; at < bytes.length; at += PIECE) {
    const piece = bytes.subarray(at, at + PIECE)
    if (!stream.send(piece)) await stream.onDrain()
    written(piece.length)
  }
}

async function hashOf (stream) {
  const hash = createHash('sha256')
  await receive(stream, chunk => hash.update(chunk))
  return hash.digest()
}

let released = Promise.withResolvers()

const served = {
  async echo (stream) {
    let last = Promise.resolve()
    await receive(stream, chunk => {
      last = last.then(async () => { if (!stream.send(chunk)) await stream.onDrain() })
    })
    await last
    await stream.close()
  },
  async hash (stream) {
    stream.send(await hashOf(stream))
    await stream.close()
  },
  async hold (stream) {
    stream.pause()
    await released.promise
    const hash = hashOf(stream)
    stream.resume()
    stream.send(await hash)
    await stream.close()
  },
  reset (stream) {
    stream.addEventListener('message', () => stream.abort(new Error('as asked')), { once: true })
  }
}

async function start (listen) {
  const node = await createLibp2p({
    addresses: { listen },
    transports: [tcp(), circuitRelayTransport()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionGater: { denyDialMultiaddr: () => false },
    services: {
      identify: identify(),
      identifyPush: identifyPush(),
      ping: ping(),
      relay: circuitRelayServer({ reservations: { applyDefaultLimit: false } }),
      pubsub: gossipsub({ allowPublishToZeroTopicPeers: true }),
      dht: kadDHT({
        protocol: '/ipfs/kad/1.0.0',
        clientMode: false,
        peerInfoMapper: passthroughMapper,
        validators: { swarmd: async () => {} },
        selectors: { swarmd: () => 0 }
      })
    }
  })
  for (const [name, handler] of Object.entries(served)) {
    await node.handle(`/interop/${name}/1`, async stream => {
      try { await handler(stream) } catch (error) { stream.abort(error) }
    }, LIMITS)
  }
  return node
}

// ---- what can be asked

const node = await start(['/ip4/127.0.0.1/tcp/0'])
const identified = new Map()
const heard = []
let reachable
let written = 0

node.addEventListener('peer:identify', ({ detail }) => identified.set(detail.peerId.toString(), detail))
node.services.pubsub.addEventListener('message', ({ detail }) => {
  heard.push([detail.topic, detail.from.toString(), new TextDecoder().decode(detail.data)])
})

const idOf = name => node.getPeers().find(peer => peer.toString() === name)
const open = (peer, name) => node.dialProtocol(idOf(peer), `/interop/${name}/1`, LIMITS)
const utf8 = text => new TextEncoder().encode(text)
const cidOf = multihash => CID.createV1(RAW, decode(Buffer.from(multihash, 'hex')))

async function collect (events, name) {
  const found = []
  for await (const event of events) if (event.name === name) found.push(event)
  return found
}

const asked = {
  async dial ({ address }) {
    const connection = await node.dial(multiaddr(address))
    return { peer: connection.remotePeer.toString(), encryption: connection.encryption, multiplexer: connection.multiplexer }
  },
  hangUp: ({ peer }) => node.hangUp(idOf(peer)),
  connected: ({ peer }) => idOf(peer) != null,
  identified ({ peer }) {
    const { agentVersion, protocolVersion, protocols, listenAddrs, observedAddr } = identified.get(peer) ?? {}
    return protocols && { agentVersion, protocolVersion, protocols, listens: listenAddrs.map(String), observed: String(observedAddr) }
  },
  ping: ({ peer }) => node.services.ping.ping(idOf(peer)),
  async echo ({ peer, size, streams = 1 }) {
    const started = performance.now()
    const one = async () => {
      const stream = await open(peer, 'echo')
      const bytes = randomBytes(size)
      const returned = hashOf(stream)
      await send(stream, bytes)
      await stream.close()
      return createHash('sha256').update(bytes).digest().equals(await returned)
    }
    const outcomes = await Promise.allSettled(Array.from({ length: streams }, one))
    return {
      same: outcomes.filter(({ value }) => value === true).length,
      wrong: outcomes.filter(({ value }) => value === false).length,
      errors: outcomes.filter(({ reason }) => reason != null).map(({ reason }) => reason.name),
      seconds: (performance.now() - started) / 1000
    }
  },
  // Sends, finishes, and only then is answered with the hash: `protocol` is hash or hold.
  async upload ({ peer, protocol, size }) {
    const stream = await open(peer, protocol)
    const bytes = randomBytes(size)
    const parts = []
    const answered = receive(stream, chunk => parts.push(chunk))
    written = 0
    await send(stream, bytes, length => { written += length })
    await stream.close()
    await answered
    return createHash('sha256').update(bytes).digest().equals(Buffer.concat(parts))
  },
  written: () => written,
  release () {
    released.resolve()
    released = Promise.withResolvers()
  },
  // What our side of a stream that the peer resets is told.
  async provoke ({ peer }) {
    const stream = await open(peer, 'reset')
    stream.send(utf8('?'))
    try {
      await receive(stream, () => {})
      return 'finished'
    } catch (error) {
      return error.message
    }
  },
  // Hears an echo, then resets the stream.
  async abandon ({ peer }) {
    const stream = await open(peer, 'echo')
    const first = Promise.withResolvers()
    receive(stream, first.resolve).catch(() => {})
    stream.send(utf8('?'))
    await first.promise
    stream.abort(new Error('as asked'))
  },
  subscribe: ({ topic }) => node.services.pubsub.subscribe(topic),
  subscribers: ({ topic }) => node.services.pubsub.getSubscribers(topic).map(String),
  publish: ({ topic, text }) => node.services.pubsub.publish(topic, utf8(text)).then(({ recipients }) => recipients.map(String)),
  heard: () => heard,
  put: ({ key, value }) => collect(node.services.dht.put(utf8(key), utf8(value)), 'PEER_RESPONSE').then(found => found.length),
  async get ({ key }) {
    const [first] = await collect(node.services.dht.get(utf8(key)), 'VALUE')
    return first && new TextDecoder().decode(first.value)
  },
  async provide ({ multihash }) {
    await collect(node.services.dht.provide(cidOf(multihash)), 'PEER_RESPONSE')
  },
  async providers ({ multihash }) {
    const found = await collect(node.services.dht.findProviders(cidOf(multihash)), 'PROVIDER')
    return found.flatMap(({ providers }) => providers.map(({ id }) => id.toString()))
  },
  // A second peer, which only a relay makes reachable.
  async listenThrough ({ relay }) {
    reachable = await start([`${relay}/p2p-circuit`])
    while (reachable.getMultiaddrs().length === 0) await new Promise(resolve => setTimeout(resolve, 20))
    return reachable.getMultiaddrs().map(String)
  },
  stopListening: () => reachable.stop()
}

const say = message => process.stdout.write(JSON.stringify(message) + '\n')

createInterface({ input: process.stdin }).on('line', async line => {
  const { id, ask, ...given } = JSON.parse(line)
  try {
    say({ id, answer: await asked[ask](given) ?? null })
  } catch (error) {
    say({ id, error: `${error.name}: ${error.message}` })
  }
}).on('close', () => process.exit(0))

say({ peer: node.peerId.toString(), address: node.getMultiaddrs()[0].toString(), version: process.version })
