// A js-libp2p circuit relay over QUIC and TCP, since Lattica ships none: listens at the given multiaddrs and prints who it is.

// Node 20 lacks it, and the libraries call it at once, so they are imported after.
Promise.withResolvers ??= function () {
  const parts = {}
  parts.promise = new Promise((resolve, reject) => Object.assign(parts, { resolve, reject }))
  return parts
}

const { createLibp2p } = await import('libp2p')
const { tcp } = await import('@libp2p/tcp')
const { quic } = await import('@chainsafe/libp2p-quic')
const { noise } = await import('@libp2p/noise')
const { yamux } = await import('@libp2p/yamux')
const { identify } = await import('@libp2p/identify')
const { ping } = await import('@libp2p/ping')
const { circuitRelayServer } = await import('@libp2p/circuit-relay-v2')

const addresses = process.argv.slice(2)
const node = await createLibp2p({
  addresses: { listen: addresses, announce: addresses },
  transports: [quic(), tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionGater: { denyDialMultiaddr: () => true },
  services: {
    identify: identify(),
    ping: ping(),
    relay: circuitRelayServer({ reservations: { applyDefaultLimit: false, maxReservations: 64 } })
  }
})
// Lattica leaves every peer that says another protocol version than its own.
node.services.identify.host.protocolVersion = '/ipfs/kad/1.0.0'
console.log(JSON.stringify({ peer: node.peerId.toString() }))
